"""Volume formats that are read: one file each. A module here with a ``READER`` is found by the registry on its own."""
