"""Inference engines, which run the network on windows; all implement :class:`semiseg.engines.engine.Engine`."""
