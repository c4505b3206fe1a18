"""Model bundles: the contract between training and inference, and the only data that the two share."""
