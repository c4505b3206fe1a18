"""Acceptance of a newly trained model in place of the one in use: criteria, fixed before the training, and decision."""

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
    """Conditions that a new model has to meet; each Dice is a mean over segments and scans unless stated otherwise.

    Attributes:
        margin: Largest allowed decrease of the Dice from the model in use to the new model.
        segment_margin: Largest allowed decrease of the Dice of each segment.
        interval: If True, the lower limit of the 95% interval of the difference has to be above ``-margin``, too. With
            few scans that is seldom reached.
        least_scans: Minimum number of scans on which the two models are compared.
        hold_back_every: For a dataset without validation scans: every n-th labelled scan, in the order of labelling, is
            kept out of all trainings, and the models are compared on these scans. 0 holds back none.
        least_agreement: Minimum agreement of each label, as a share of the median agreement. The agreement of a label
            is its Dice with a model's segmentation of the scan: that of the new model for all labels that are used for
            training or comparison, and that of the model in use for labels that it was not trained on. The agreement of
            a label that was shifted, mirrored or drawn on another patient is too low with the model in use even if the
            new model has memorised the label. A label that a person has confirmed is not checked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin: _Share = 0.02
    segment_margin: _Share = 0.05
    interval: bool = False
    least_scans: Annotated[int, Field(ge=1)] = 1
    hold_back_every: Annotated[int, Field(ge=0)] = 5
    least_agreement: _Share = 0.5


class LabelAgreement(BaseModel):
    """Agreement of one label with the segmentations of models.

    Attributes:
        image: Id of the image.
        new: Mean Dice over the segments with the new model's segmentation; None if no segment occurs.
        in_use: Mean Dice with the segmentation of the model in use; None for a label that it was trained on, or if
            there is no such model.
        confirmed: True if a person has confirmed that the label is right.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    new: float | None
    in_use: float | None = None
    confirmed: bool = False


class AcceptanceDecision(BaseModel):
    """The decision about a new model, with its evidence.

    Attributes:
        accepted: True if the new model is used from now on.
        reasons: Reasons in sentences; the first one is the decision.
        criteria: Criteria that were fixed before the training.
        judged_on: Scans on which the models were compared.
        judged_because: Reason for the choice of these scans.
        candidate: Dice of the new model by scan and segment.
        current: Dice of the model in use; None if there was none.
        differences: Differences of the Dice, new model minus model in use, by segment and for ``all``: mean, limits of
            the 95% interval, number of scans.
        labels: Agreement of each label that is used for training or comparison, in the order of the scans.
        failures: Scans that could not be segmented or compared, with the error.
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
    """Select the labelled scans that are kept out of trainings: each ``hold_back_every``-th in the order of labelling.

    A scan that was held back once stays held back, because new scans are only appended to the order.
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
        criteria: Criteria of the acceptance.
        judged_because: Reason for the choice of the scans on which the models are compared.
        candidate: Evaluation of the new model on the scans for the comparison; None if there are none.
        current: Evaluation of the model in use on the same scans; None if there is no model or no scan.
        labels: Evaluation of the new model on the scans with whose labels it was trained.
        unseen: Evaluation of the model in use on the scans with labels that it was not trained on; None if there are
            none.
        confirmed: Images whose label a person has confirmed.
        replaces: True if there is a model in use.
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
            f"There are {len(scans)} scans to compare the models on, but the criteria require {criteria.least_scans}. "
            "Add validation scans to the split, or label more scans."
        )
    if against:
        reasons = ("The new model is not used.", *against)
    elif overall is not None:
        reasons = ("The new model is used.", f"It is not worse than the previous model: {_told(overall)}.")
    else:
        reasons = ("The new model is used.", "There was no previous model to compare it with.")
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
    """The mean Dice of each scan over its segments; scans without any segment are omitted."""
    found: dict[str, float] = {}
    for case in labels.cases:
        values = [row.score.dice for row in labels.rows if row.case == case and not math.isnan(row.score.dice)]
        if values:
            found[case] = fmean(values)
    return found


def _doubted(
    new: Mapping[str, float], in_use: Mapping[str, float], right: set[str], criteria: AcceptanceCriteria
) -> list[str]:
    """A sentence about the label that agrees least with a model, if its agreement is too low; else an empty list."""
    for model, agreement in (("the new model", new), ("the model in use", in_use)):
        doubtful = {case: value for case, value in agreement.items() if case not in right}
        if len(agreement) < 3 or not doubtful:
            continue
        middle = median(agreement.values())
        case = min(doubtful, key=lambda one: doubtful[one])
        if doubtful[case] < criteria.least_agreement * middle:
            return [
                f"The label of {case} disagrees most: its Dice with {model} is {doubtful[case]:.2f}, and the median of "
                f"{len(agreement)} labels is {middle:.2f}. Check whether it was shifted, mirrored, or drawn on another "
                "scan. Confirm it if it is right; otherwise save a corrected label."
            ]
    return []


def _worse(
    differences: Mapping[str, Difference], overall: Difference | None, criteria: AcceptanceCriteria
) -> list[str]:
    if overall is None:
        return []
    found = []
    # A difference that is NaN does not show that the new model is as good.
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
