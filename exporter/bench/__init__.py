"""Benchmark of inference time and memory on this machine, against other sliding windows with the same network."""
