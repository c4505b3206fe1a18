"""ICT (Verma et al., IJCAI 2019): interpolation consistency.

For a mixture of two unlabelled patches, the student predicts the same mixture of the moving average's predictions.

    python examples/ict.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=300",
    "methods.ict.weight=1",  # w_max, the largest weight of the consistency term
    "methods.ict.ramp=0.5",  # share of the updates over which w(t) rises
    "methods.ict.alpha=0.2",  # parameter of the Beta distribution of lambda
]

if __name__ == "__main__":
    run(__doc__, "ict", SETTINGS)
