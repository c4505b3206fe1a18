"""MC-Net+ (Wu et al., Medical Image Analysis 2022): further decoders on one encoder agree with each other.

Each decoder learns from the sharpened predictions of the others.

    python examples/mcnet.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=300",
    "methods.mcnet.decoders=3",  # 2 in MC-Net, 3 in MC-Net+
    "methods.mcnet.weight=1",  # w_max, the largest weight of the mutual consistency
    "methods.mcnet.ramp=0.4",  # share of the updates over which w(t) rises
    "methods.mcnet.temperature=0.1",  # T of the sharpening
]

if __name__ == "__main__":
    run(__doc__, "mcnet", SETTINGS)
