"""From a volume to a segmentation: the sliding window and the segmenter."""
