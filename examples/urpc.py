"""URPC (Luo et al., MICCAI 2021): the levels of the decoder agree, where they are similar.

The student predicts at several levels; each prediction is compared with their mean, weighted by exp(-D_s).

    python examples/urpc.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=300",
    "methods.urpc.weight=0.1",  # w_max, the largest weight of the unsupervised term
    "methods.urpc.ramp=0.5",  # share of the updates over which w(t) rises
    "methods.urpc.divergence=from_mean",  # direction of D_s: as released; to_mean is as printed
]

if __name__ == "__main__":
    run(__doc__, "urpc", SETTINGS)
