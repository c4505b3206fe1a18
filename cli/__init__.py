"""The command line: one file a command, imported when the command is called."""

# What semiseg.own_packages tells its packages from others of the same name by.
PART_OF = "semiseg"
