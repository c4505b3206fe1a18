"""M&N's 2D network alone: a SegFormer segments volumes slice by slice (first rows of the paper's table 1).

It is trained on the labelled scans and shares the settings of `mn`.

    python examples/mn_2d.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=300",
    "methods.mn.slices=6",  # slices of each patch on which the network learns in a step
    "methods.mn.teacher.finetune=whole",  # the whole network is trained; lora adapts pretrained weights
]

if __name__ == "__main__":
    run(__doc__, "mn_2d", SETTINGS)
