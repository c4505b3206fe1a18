"""AC-MT (Xu et al., Medical Image Analysis 2023): Mean Teacher where the prediction is ambiguous.

The selection of voxels is the opposite of UA-MT's.

    python examples/acmt.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=300",
    "methods.acmt.weight=1",  # w_max, the largest weight of the consistency term
    "methods.acmt.ramp=0.5",  # share of the updates over which w(t) rises
    "methods.acmt.selection=entropy",  # criterion of ambiguity; also model_uncertainty, prototype_error, label_error
]

if __name__ == "__main__":
    run(__doc__, "acmt", SETTINGS)
