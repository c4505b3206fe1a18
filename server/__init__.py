"""The web service, the gateway to a PACS, the queue of jobs that both use, and the labelling server."""

# Mark by which semiseg.own_packages recognises its packages among others of the same name.
PART_OF = "semiseg"
