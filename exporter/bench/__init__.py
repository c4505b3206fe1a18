"""How fast and how lean inference is on this machine, beside other sliding windows around the same network."""
