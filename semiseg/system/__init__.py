"""Facilities that differ between operating systems, one per module; no other module checks the operating system."""
