"""Supported volume formats, one module each. The registry finds every module here that has a ``READER``."""
