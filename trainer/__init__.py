"""The semi-supervised methods and the one loop that trains them all. Needs torch; everything below it does not."""

# What semiseg.own_packages tells its packages from others of the same name by.
PART_OF = "semiseg"
