"""Inference: engine selection, sliding window and segmenter."""
