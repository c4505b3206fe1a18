"""From a training run to a bundle: the 2D teacher stays behind, the small 3D network leaves as ONNX, with proof."""

# What semiseg.own_packages tells its packages from others of the same name by.
PART_OF = "semiseg"
