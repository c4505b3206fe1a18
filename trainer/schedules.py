"""Learning-rate schedules and ramp-ups as pure functions of the step, so that a resumed run gets the same values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from semiseg.deprecation import renamed_attributes
from trainer.recipe import Schedule

WeightSchedule = Literal["constant", "ramp", "falling"]
"""Name of a schedule for the weight of a loss term; see :func:`weight_schedule_factor`."""

if not TYPE_CHECKING:
    __getattr__ = renamed_attributes(
        __name__,
        Course="WeightSchedule",
        cosine="cosine_decay",
        course_factor="weight_schedule_factor",
        poly="polynomial_decay",
    )


def warm_up_cosine(step: int, total: int, warm_up: int) -> float:
    """Rise linearly from 0.01 to 1 over ``warm_up`` steps, then decay to 0 as a cosine (M&N section 3.1)."""
    return _warming(step, warm_up) if step < warm_up else cosine_decay(step - warm_up, total - warm_up)


def cosine_decay(step: int, total: int) -> float:
    """Return (1 + cos(pi t / T)) / 2 for step t of T.

    Examples:
        >>> cosine_decay(0, 100), cosine_decay(50, 100), cosine_decay(100, 100)
        (1.0, 0.5, 0.0)
    """
    return 0.5 * (1.0 + math.cos(math.pi * min(step, total) / max(total, 1)))


def polynomial_decay(step: int, total: int) -> float:
    """Return (1 - t/T)^0.9 for step t of T, the decay in most repositories of semi-supervised 3D methods."""
    return float((1.0 - min(step, total) / max(total, 1)) ** 0.9)


def _warming(step: int, warm_up: int) -> float:
    return 0.01 + 0.99 * step / warm_up


def rate_factor(schedule: Schedule, step: int, total: int) -> float:
    """Return the factor of the optimiser's learning rate at ``step`` of ``total``."""
    warm = round(schedule.warm_up * total)
    if step < warm:
        return _warming(step, warm)
    if schedule.kind == "cosine":
        return cosine_decay(step - warm, total - warm)
    if schedule.kind == "poly":
        return polynomial_decay(step - warm, total - warm)
    if schedule.kind == "step":
        return float(0.1 ** (step // schedule.step_every))
    return 1.0


def ramp_up(step: float, length: float) -> float:
    """Return exp(-5 (1 - t/T)^2), a consistency term's weight from e^-5 to 1 (Laine and Aila 2017, section 2.2).

    Examples:
        >>> round(ramp_up(0, 100), 4), ramp_up(100, 100)
        (0.0067, 1.0)
    """
    if length <= 0:
        return 1.0
    return math.exp(-5.0 * (1.0 - min(max(step, 0.0), length) / length) ** 2)


def weight_schedule_factor(course: WeightSchedule, update: int, total: int) -> float:
    """Return 1 for ``constant``, :func:`ramp_up` over the whole run for ``ramp``, or 1 - t/T for ``falling``."""
    return {"constant": 1.0, "ramp": ramp_up(update, total), "falling": 1.0 - update / total}[course]


def ema_decay(step: int, limit: float) -> float:
    """Return min(1 - 1/(t+1), limit) for t from 0; the teacher starts as a copy of the student (Mean Teacher).

    Examples:
        >>> ema_decay(0, 0.99), ema_decay(3, 0.99), ema_decay(1000, 0.99)
        (0.0, 0.75, 0.99)
    """
    return min(1.0 - 1.0 / (step + 1.0), limit)
