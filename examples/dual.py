"""Dual Networks (2025): the better of two different networks teaches the other one, where one of them is certain.

The mean of both networks is kept.

    python examples/dual.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=300",
    "methods.dual.partner={kind: unet, channels: [8, 16, 32], residual_units: 2}",  # the second network
    "methods.dual.weight_semi=1",  # weight of the pseudo-labels, Eq. 4
    "methods.dual.weight_reg=1",  # weight of Eq. 5
    "methods.dual.weight_unc=1",  # weight of the uncertainty, Eq. 7
    "methods.dual.weight_con=0.1",  # largest weight of the prototypes, Eq. 11
    "methods.dual.keep_quantile=0.8",  # share of the voxels that count as certain
]

if __name__ == "__main__":
    run(__doc__, "dual", SETTINGS)
