"""Cross pseudo supervision (Chen et al., CVPR 2021): two networks learn from each other's decisions.

L = L_sup(A) + L_sup(B) + w(t) (CE(A, decisions of B) + CE(B, decisions of A)).

    python examples/cps.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=300",
    "methods.cps.weight=0.3",  # w_max, the largest weight of the pseudo-labels
    "methods.cps.ramp=0.5",  # share of the updates over which w(t) rises
    "methods.cps.pseudo_on=unlabelled",  # patches of the cross term; the paper takes all
]

if __name__ == "__main__":
    run(__doc__, "cps", SETTINGS)
