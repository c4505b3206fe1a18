"""CFR_FT (Li et al. 2024): the fine-tuned SAM of CFR segments volumes itself.

It is trained on the labelled scans and shares the settings of `cfr`.

    python examples/cfr_ft.py [--data DATA]
"""

from example import SMALL_SAM, run

SETTINGS = [
    "updates=300",
    f"methods.cfr.sam={SMALL_SAM}",
    "methods.cfr.bend=0.5",  # share of the slices whose intensities are mapped by a random curve
]

if __name__ == "__main__":
    run(__doc__, "cfr_ft", SETTINGS)
