"""Supervised training on the labelled scans alone: the baseline of every other example.

L = (cross-entropy + Dice) / 2 on labelled patches.

    python examples/supervised.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=300",
]

if __name__ == "__main__":
    run(__doc__, "supervised", SETTINGS)
