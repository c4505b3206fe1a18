"""Committee: several networks and atlases label the unlabelled scans together, and one student learns from them.

python examples/committee.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=300",
    "methods.committee.members=[{method: supervised}, {method: mean_teacher, seed: 1}]",  # networks of the first round
    "methods.committee.atlas=true",  # atlases are a member, too, unless the labelled scans rule them out
    "methods.committee.weighing=by_kind",  # half for the atlases; cross_fitted fits weights on held-back labelled scans
    "methods.committee.rounds=1",  # number of rounds
]

if __name__ == "__main__":
    run(__doc__, "committee", SETTINGS)
