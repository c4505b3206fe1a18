"""Mean Teacher (Tarvainen and Valpola, NeurIPS 2017): the student agrees with its moving average under noise.

L = L_sup(labelled) + w(t) mean (p_student - p_teacher)^2 on unlabelled patches.

    python examples/mean_teacher.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=300",
    "methods.mean_teacher.weight=10",  # w_max, the largest weight of the consistency term
    "methods.mean_teacher.ramp=0.5",  # share of the updates over which w(t) = w_max exp(-5 (1 - t/T)^2) rises
    "methods.mean_teacher.decay=0.99",  # limit of the decay of the moving average
    "methods.mean_teacher.noise=0.1",  # standard deviation of the noise on the teacher's input
]

if __name__ == "__main__":
    run(__doc__, "mean_teacher", SETTINGS)
