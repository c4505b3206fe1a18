"""Semi-supervised methods and the training loop that they share.

This package needs torch; :mod:`semiseg`, on which it builds, does not.
"""

# semiseg.own_packages uses this to distinguish this package from others of the same name.
PART_OF = "semiseg"
