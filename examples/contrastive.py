"""Contrastive pre-training: `comparative` with the contrastive loss, its baseline in the paper.

python examples/contrastive.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=300",
    "methods.contrastive.then=supervised",  # method that follows
    "methods.contrastive.feature_updates=100",  # largest number of steps on the features
    "methods.contrastive.output_updates=100",  # largest number of steps on the logits
]

if __name__ == "__main__":
    run(__doc__, "contrastive", SETTINGS)
