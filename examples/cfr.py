"""CFR (Li et al. 2024): SAM is fine-tuned on mosaics of slices and labels the scans for a second method.

Here SAM is a small network without pretrained weights; `methods.cfr.sam={weights: {hub: facebook/sam-vit-base}}` loads
those of the paper.

    python examples/cfr.py [--data DATA]
"""

from example import SMALL_SAM, run

SETTINGS = [
    "updates=300",
    f"methods.cfr.sam={SMALL_SAM}",
    "methods.cfr.sam_updates=100",  # updates of SAM on the labelled scans
    "methods.cfr.host=mean_teacher",  # method that re-trains the 3D network
    "methods.cfr.pseudo_labels=cached",  # whole scans are labelled once
    "methods.cfr.pseudo_weight=1",  # lambda, the weight of SAM's labels
]

if __name__ == "__main__":
    run(__doc__, "cfr", SETTINGS)
