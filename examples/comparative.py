"""Comparative pre-training (2025): the student first learns to compare slices, without labels.

Slices from one position of the body become more similar than slices from two positions (Bradley-Terry); then another
method trains the student.

    python examples/comparative.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=300",
    "methods.comparative.then=supervised",  # method that follows
    "methods.comparative.feature_updates=100",  # largest number of steps on the features
    "methods.comparative.output_updates=100",  # largest number of steps on the logits
    "methods.comparative.partitions=4",  # number of parts along an axis
    "methods.comparative.temperature=0.1",  # divisor of the cosines
]

if __name__ == "__main__":
    run(__doc__, "comparative", SETTINGS)
