"""M&N (Yeung et al. 2025): a 2D network for natural images and the 3D student teach each other.

The share of unlabelled patches follows the learning rate (Eq. 10). Only the 3D student is kept. Here the 2D network is
a small SegFormer without pretrained weights. A pretrained one, trained with LoRA as in the paper, replaces it:
`--set 'methods.mn.teacher={weights: {hub: ..., licence: ...}}'`.

    python examples/mn.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=304",  # a whole number of epochs of 8 updates
    "methods.mn.stage1=0.25",  # share of the updates in which both networks see labelled patches only
    "methods.mn.cotrain=iterative",  # both networks learn in stage 2; fixed2d is the ablation
    "methods.mn.lrg=lr",  # share of unlabelled patches: Eq. 10; also linear, fixed, uniform
    "methods.mn.slices=6",  # slices of each patch on which the 2D network learns in a step
]

if __name__ == "__main__":
    run(__doc__, "mn", SETTINGS)
