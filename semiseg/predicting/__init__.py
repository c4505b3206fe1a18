"""From files to files: one scan, or the scans of a whole archive, here or on a cluster."""
