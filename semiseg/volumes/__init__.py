"""Volumes: bytes to scans and back, with their place in the patient."""
