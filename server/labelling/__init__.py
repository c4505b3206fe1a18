"""The labelling server: annotators draw and correct a dataset's labels through clients of MONAI Label's REST API."""
