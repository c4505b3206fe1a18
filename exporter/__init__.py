"""Export of a training run's 3D network to a bundle of ONNX graphs that are compared with the trained network."""

# semiseg.own_packages recognises the packages of this project by this name.
PART_OF = "semiseg"
