"""Whether a newly trained model may replace the one in use: criteria fixed before the training, and the decision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from semiseg.evaluation.bootstrap import Difference, compare
from semiseg.evaluation.result import Evaluation

_Share = Annotated[float, Field(ge=0, le=1)]


class AcceptanceCriteria(BaseModel):
    """What a new model has to reach; all Dice are means over segments and scans unless something else is said.

    Attributes:
        margin: How much lower than that of the model in use the new model's Dice may be.
        segment_margin: The same for the Dice of each segment.
        interval: Whether the lower limit of the 95% interval of the difference, too, has to be above ``-margin``. With
            few scans that is seldom reached.
        least_scans: Least number of scans on which the two models are compared.
        hold_back_every: For a dataset without validation scans: of the labelled scans, in the order in which they were
            labelled, each one of this number is kept out of all trainings, and the models are compared on these. 0
            keeps none out.
        least_agreement: Share of the median agreement that each label has to reach. The agreement of a label is its
            Dice with a model's own segmentation of its scan: that of the new model for all labels that teach or judge,
            and that of the model in use for those that it has not learned from. A label that was shifted, mirrored or
            drawn on another patient falls below, also where the new model has learned it by heart. A label that
            somebody has confirmed counts as right.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin: _Share = 0.02
    segment_margin: _Share = 0.05
    interval: bool = False
    least_scans: Annotated[int, Field(ge=1)] = 1
    hold_back_every: Annotated[int, Field(ge=0)] = 5
    least_agreement: _Share = 0.5


class LabelAgreement(BaseModel):
    """How far models agree with one label.

    Attributes:
        image: Id of the image.
        new: Mean Dice over the segments of the new model's segmentation; None where no segment occurs.
        in_use: The same of the model in use; None for a label that it has learned from, or without such a model.
        confirmed: Whether somebody has confirmed that the label is right.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    new: float | None
    in_use: float | None = None
    confirmed: bool = False


class AcceptanceDecision(BaseModel):
    """The decision about a new model, with its evidence.

    Attributes:
        accepted: Whether the new model is used from now on.
        reasons: Sentences that say why; the first one is the decision.
        criteria: The criteria, as they were fixed before the training.
        judged_on: Scans on which the models were compared.
        judged_because: Why these scans.
        candidate: Dice of the new model by scan and segment.
        current: Dice of the model in use; None if there was none.
        differences: New model minus model in use, by segment and over ``all``: mean, limits of the 95% interval, scans.
        labels: Agreement of each label that teaches or judges, in the order of the scans.
        failures: Scans that could not be segmented or compared, with the reason.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    accepted: bool
    reasons: tuple[str, ...]
    criteria: AcceptanceCriteria
    judged_on: tuple[str, ...]
    judged_because: str
    candidate: dict[str, dict[str, float | None]]
    current: dict[str, dict[str, float | None]] | None
    differences: dict[str, dict[str, float | None]]
    labels: tuple[LabelAgreement, ...]
    failures: dict[str, str]


def select_holdout(labelled: Sequence[str], criteria: AcceptanceCriteria) -> list[str]:
    """The labelled scans that are kept out of trainings: each ``hold_back_every``-th in the order of labelling.

    A scan that was held back once stays held back, since the order only grows at its end.
    """
    every = criteria.hold_back_every
    return list(labelled[every - 1 :: every]) if every else []


def decide(
    criteria: AcceptanceCriteria,
    *,
    judged_because: str,
    candidate: Evaluation | None,
    current: Evaluation | None,
    labels: Evaluation,
    unseen: Evaluation | None = None,
    confirmed: Iterable[str] = (),
    replaces: bool,
) -> AcceptanceDecision:
    """Decide whether a new model replaces the one in use.

    Args:
        criteria: The criteria.
        judged_because: Why the scans were chosen on which the two are compared.
        candidate: The new model on the scans that judge; None if there are none.
        current: The model in use on the same scans; None if there is no model or no scan.
        labels: The new model on the scans that it was trained on with a label.
        unseen: The model in use on the scans whose label it has not learned from; None if there are none.
        confirmed: Images whose label somebody has confirmed.
        replaces: Whether there is a model in use.
    """
    differences = compare(candidate, current) if candidate is not None and current is not None else {}
    overall = differences.get("all") or next(iter(differences.values()), None)
    new = _agreement(labels if candidate is None else replace(labels, rows=(*labels.rows, *candidate.rows)))
    in_use = _agreement(unseen) if unseen is not None else {}
    right = {*confirmed}
    failures = {**labels.failures, **(candidate.failures if candidate else {}), **(current.failures if current else {})}
    against = [
        *_doubted(new, in_use, right, criteria),
        *(f"The scan {case} could not be compared: {sentence}" for case, sentence in failures.items()),
        *_worse(differences, overall, criteria),
    ]
    scans = candidate.cases if candidate is not None else ()
    if replaces and len(scans) < criteria.least_scans:
        against.append(
            f"There are {len(scans)} scans to compare the models on, and the criteria ask for {criteria.least_scans}. "
            "Name validation scans in the split, or label more scans."
        )
    if against:
        reasons = ("The new model is not used.", *against)
    elif overall is not None:
        reasons = ("The new model is used.", f"It is not worse than the model before: {_told(overall)}.")
    else:
        reasons = ("The new model is used.", "There was no model before it that it could be compared with.")
    return AcceptanceDecision(
        accepted=not against,
        reasons=reasons,
        criteria=criteria,
        judged_on=scans,
        judged_because=judged_because,
        candidate=_table(candidate) if candidate is not None else {},
        current=_table(current) if current is not None else None,
        differences={name: _numbers(one) for name, one in differences.items()},
        labels=tuple(
            LabelAgreement(
                image=case, new=_rounded(new.get(case)), in_use=_rounded(in_use.get(case)), confirmed=case in right
            )
            for case in dict.fromkeys((*new, *in_use))
        ),
        failures=failures,
    )


def _agreement(labels: Evaluation) -> dict[str, float]:
    """The mean Dice of each scan over its segments; scans in which no segment occurs are left out."""
    found: dict[str, float] = {}
    for case in labels.cases:
        values = [row.score.dice for row in labels.rows if row.case == case and not math.isnan(row.score.dice)]
        if values:
            found[case] = fmean(values)
    return found


def _doubted(
    new: Mapping[str, float], in_use: Mapping[str, float], right: set[str], criteria: AcceptanceCriteria
) -> list[str]:
    """A sentence for the label that agrees least with a model, if that is too little beside the other labels."""
    for model, agreement in (("the new model", new), ("the model in use", in_use)):
        doubtful = {case: value for case, value in agreement.items() if case not in right}
        if len(agreement) < 3 or not doubtful:
            continue
        middle = median(agreement.values())
        case = min(doubtful, key=lambda one: doubtful[one])
        if doubtful[case] < criteria.least_agreement * middle:
            return [
                f"The label of {case} disagrees most: its Dice with {model} is {doubtful[case]:.2f}, and the median of "
                f"{len(agreement)} labels is {middle:.2f}. Look whether it was shifted, mirrored, or drawn on another "
                "scan; if it is right, confirm it, and if it is not, save another one."
            ]
    return []


def _worse(
    differences: Mapping[str, Difference], overall: Difference | None, criteria: AcceptanceCriteria
) -> list[str]:
    if overall is None:
        return []
    found = []
    # A difference that is not a number is no evidence that the new model is as good.
    if not overall.mean >= -criteria.margin:
        found.append(f"It is worse than the model in use by more than {criteria.margin:g}: {_told(overall)}.")
    elif criteria.interval and not overall.low >= -criteria.margin:
        found.append(f"It may be worse than the model in use by more than {criteria.margin:g}: {_told(overall)}.")
    for name, one in differences.items():
        if name != "all" and one.pairs and not one.mean >= -criteria.segment_margin:
            found.append(f"{name} is worse by more than {criteria.segment_margin:g}: {_told(one)}.")
    return found


def _told(one: Difference) -> str:
    interval = f", 95% interval {one.low:+.3f} to {one.high:+.3f}" if one.pairs > 1 else ""
    scans = "1 scan" if one.pairs == 1 else f"{one.pairs} scans"
    return f"the difference of the mean Dice on {scans} is {one.mean:+.3f}{interval}"


def _table(evaluation: Evaluation) -> dict[str, dict[str, float | None]]:
    return {
        case: {row.segment: _number(row.score.dice) for row in evaluation.rows if row.case == case}
        for case in evaluation.cases
    }


def _numbers(one: Difference) -> dict[str, float | None]:
    return {"mean": _number(one.mean), "low": _number(one.low), "high": _number(one.high), "scans": one.pairs}


def _rounded(value: float | None) -> float | None:
    return None if value is None else _number(value)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
