"""Distillation (Hinton et al. 2015): a trained network teaches a smaller one on labelled and unlabelled patches.

The student matches the teacher's probabilities at the temperature T, and the labels where there are any. The first run
trains the teacher.

    python examples/distil.py [--data DATA]
"""

from example import generate_scans, parse_options, train

TEACHER = ["updates=300"]
STUDENT = [
    "updates=300",
    "student={kind: unet, channels: [4, 8, 16], residual_units: 0}",
    "methods.distil.temperature=2",  # T
    "methods.distil.soft=0.7",  # share of the teacher's term in the loss
]

if __name__ == "__main__":
    options = parse_options(__doc__, "distil")
    data, teacher = options.data or generate_scans(options.out / "data"), options.out / "teacher"
    train(data, teacher, "mean_teacher", [*TEACHER, *options.set], options.labelled)
    train(
        data,
        options.out / "run",
        "distil",
        [*STUDENT, f"methods.distil.teacher={teacher}", *options.set],
        options.labelled,
    )
