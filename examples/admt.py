"""AD-MT (Zhao et al., ECCV 2024): two moving averages are updated alternately and label unlabelled patches.

The first teacher is active with a strong view of the patches, the second one with CutMix.

    python examples/admt.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=300",
    "methods.admt.weight=2",  # w_max, the largest weight of the pseudo-labels
    "methods.admt.ramp=0.4",  # share of the updates over which w(t) rises
    "methods.admt.threshold=0.8",  # smallest probability at which a pseudo-label counts
    "methods.admt.period=19",  # largest number of updates for which one teacher is active
    "methods.admt.cutmix=1",  # probability of CutMix while the second teacher is active
]

if __name__ == "__main__":
    run(__doc__, "admt", SETTINGS)
