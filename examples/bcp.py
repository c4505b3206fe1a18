"""BCP (Bai et al., CVPR 2023): labelled and unlabelled patches are pasted into each other, in both directions.

A box of a labelled patch is pasted into an unlabelled one and the reverse; the labels are pasted in the same way, and
a moving average labels the unlabelled part.

    python examples/bcp.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=300",
    "methods.bcp.pretrain=0.2",  # share of the updates on mixtures of labelled patches alone
    "methods.bcp.box=0.667",  # side of the box as a share of the patch's side
    "methods.bcp.weight=0.5",  # alpha, the weight of voxels with a pseudo-label
    "methods.bcp.decay=0.99",  # decay of the moving average
]

if __name__ == "__main__":
    run(__doc__, "bcp", SETTINGS)
