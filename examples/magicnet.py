"""MagicNet (Chen et al., CVPR 2023): cubes are mixed across scans, and segmented one by one.

The student also predicts the position of each cube.

    python examples/magicnet.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=300",
    "methods.magicnet.cubes=2",  # number of cubes per axis
    "methods.magicnet.weight=0.1",  # w_max, the largest weight of the pseudo-labels
    "methods.magicnet.location=0.1",  # weight of the classification of a cube's position
    "methods.magicnet.hidden=256",  # width of the hidden layer of the location head
]

if __name__ == "__main__":
    run(__doc__, "magicnet", SETTINGS)
