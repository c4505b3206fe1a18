"""UA-MT (Yu et al., MICCAI 2019): Mean Teacher where the teacher is certain.

The teacher predicts `passes` times with noise and dropout. The consistency term counts the voxels whose entropy is
below a threshold that rises during training.

    python examples/uamt.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=300",
    "methods.uamt.weight=10",  # w_max, the largest weight of the consistency term
    "methods.uamt.ramp=0.5",  # share of the updates over which w(t) rises
    "methods.uamt.passes=4",  # number of noisy passes of the teacher
    "methods.uamt.threshold=0.75",  # uncertainty in bits below which a voxel counts at the start
]

if __name__ == "__main__":
    run(__doc__, "uamt", SETTINGS)
