"""What differs between operating systems, one module for each facility; no other module asks which system this is."""
