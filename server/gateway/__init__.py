"""The PACS side: studies come in, are sent to servers of `semiseg serve`, and their segmentations go out."""
