"""Atlases: each labelled scan is registered onto each unlabelled one, and the labels vote.

The votes are weighted by the local similarity of the images. The labelled scans decide by leave-one-out whether the
atlases are used.

    python examples/atlas.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=300",
    "methods.atlas.host=mean_teacher",  # method that trains the student in addition
    "methods.atlas.weight=1",  # largest weight of the atlases' term
    "methods.atlas.min_dice=0.5",  # leave-one-out Dice below which the atlases are not used
]

if __name__ == "__main__":
    run(__doc__, "atlas", SETTINGS)
