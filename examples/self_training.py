"""Self-training (Scudder 1965): the network labels the unlabelled scans, and a new one learns from all labels.

L = L_sup(labelled) + weight L_sup(unlabelled, pseudo-labels of the previous round).

    python examples/self_training.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=300",
    "methods.self_training.rounds=2",  # number of times that the unlabelled scans are labelled
    "methods.self_training.first=0.4",  # share of the updates before the first pseudo-labels
    "methods.self_training.restart=true",  # each round trains a new network
    "methods.self_training.weight=1",  # weight of the pseudo-labelled term
]

if __name__ == "__main__":
    run(__doc__, "self_training", SETTINGS)
