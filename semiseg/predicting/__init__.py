"""Prediction from files to files: one scan or a list of scans, on this machine or on a cluster."""
