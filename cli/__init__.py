"""The command line: one file a command, imported when the command is called."""

# semiseg.own_packages recognises its own packages by this line.
PART_OF = "semiseg"
