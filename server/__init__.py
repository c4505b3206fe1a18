"""The web service, the gateway to a PACS, and the queue of jobs that both use."""

# What semiseg.own_packages tells its packages from others of the same name by.
PART_OF = "semiseg"
