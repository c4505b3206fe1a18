"""The semi-supervised methods and the one loop that trains them all. Needs torch; everything below it does not."""
