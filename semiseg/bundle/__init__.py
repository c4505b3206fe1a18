"""What training promised, and what inference therefore does: the only thing that crosses between the two."""
