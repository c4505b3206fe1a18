"""Engines: what runs the network's windows, each behind the one protocol of :mod:`semiseg.engines.engine`."""
