"""The web service, the gateway to a PACS, the queue of jobs that both use, and the labelling server."""

# What semiseg.own_packages tells its packages from others of the same name by.
PART_OF = "semiseg"
