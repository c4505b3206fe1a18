"""DualFete (Yi et al., arXiv 2511.09319): two teachers with feedback from the labelled scans.

A trial step of the student on a teacher's labels shows whether these labels reduce the student's loss on the labelled
scans; the teachers learn from this.

    python examples/dualfete.py [--data DATA]
"""

from example import run

SETTINGS = [
    "updates=300",
    "methods.dualfete.weight=1",  # w_max, the largest weight of the teachers' consistency
    "methods.dualfete.ramp=0.2",  # share of the updates over which w(t) rises
    "methods.dualfete.threshold=0.7",  # smallest probability at which a teacher's decision trains the other one
    "methods.dualfete.feedback=1",  # weight of the feedback
    "methods.dualfete.attributor=both",  # voxels of the trial step
]

if __name__ == "__main__":
    run(__doc__, "dualfete", SETTINGS)
