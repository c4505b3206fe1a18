"""The methods that stand alone, one file a paper. Adding one touches its own file and this table.

Those that do something of their own first take any of these, or some, as host.
"""

from __future__ import annotations

from trainer.methods.acmt import ACMT
from trainer.methods.bcp import BCP
from trainer.methods.cps import CPS
from trainer.methods.dual import Dual
from trainer.methods.magicnet import MagicNet
from trainer.methods.mean_teacher import MeanTeacher
from trainer.methods.method import Method
from trainer.methods.mn import MN
from trainer.methods.self_training import SelfTraining
from trainer.methods.supervised import Supervised
from trainer.methods.uamt import UAMT

ALONE: dict[str, type[Method]] = {
    m.name: m for m in (Supervised, SelfTraining, MeanTeacher, UAMT, CPS, ACMT, MagicNet, BCP, Dual, MN)
}
