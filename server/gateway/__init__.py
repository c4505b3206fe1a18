"""Gateway between a PACS and servers of `semiseg serve`: receives studies, has them segmented, delivers the results."""
