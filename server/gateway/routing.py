"""Which rule takes which series, and why the others do not: nothing is sent here, so it can be asked beforehand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiseg.volumes.dicom_index import DicomObject
from semiseg.volumes.series_rules import SeriesCandidate, group_by_series
from server.gateway.config import GatewayConfig, OutputFormat, RoutingRule, formats_for


@dataclass(frozen=True)
class RuleDecision:
    """What a rule says of a series.

    Attributes:
        rule: Name of the rule.
        series: The series.
        fits: True if the series is taken.
        reason: Sentence that says why.
        elsewhere: True if another study holds a part of it, so that no rule sends it.
    """

    rule: str
    series: SeriesCandidate
    fits: bool
    reason: str
    elsewhere: bool = False


@dataclass(frozen=True)
class RoutedSeries:
    """One scan to be segmented.

    Attributes:
        rule: Rule that made it.
        files: Names of the files that are sent, in order.
        series: UID of the series, or of the study for a rule of whole studies.
        forms: Output formats that are made.
        to: Output formats that each destination gets, by its name.
    """

    rule: RoutingRule
    files: tuple[str, ...]
    series: str
    forms: tuple[OutputFormat, ...]
    to: dict[str, tuple[OutputFormat, ...]]

    def key(self, study: str) -> str:
        """The same for the same instances, model, forms and destinations, so that it is done once."""
        told = [study, self.rule.name, self.rule.model, self.forms, sorted(self.to.items()), sorted(self.files)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def payload(self, study: str, series: str) -> dict[str, Any]:
        """Payload of the job that has it segmented, by the names of its study and series."""
        return {
            "study": study,
            "rule": self.rule.name,
            "series": series,
            "model": self.rule.model,
            "files": self.files,
            "forms": self.forms,
            "to": self.to,
        }


def apply_rules(
    objects: Sequence[DicomObject],
    senders: Sequence[str],
    rules: Sequence[RoutingRule],
    elsewhere: Callable[[str], bool] = lambda series: False,
) -> list[RuleDecision]:
    """What each rule says of each series.

    Args:
        objects: Instances of one study.
        senders: AE titles of those that sent it.
        rules: Rules of the configuration.
        elsewhere: Function that returns True for the UID of a series that another study holds, too.
    """
    return list(_decisions(group_by_series(objects), senders, rules, elsewhere))


def route_series(decisions: Sequence[RuleDecision], config: GatewayConfig) -> list[RoutedSeries]:
    """The scans to be segmented."""
    found = []
    for rule in config.rules:
        fitting = [one.series for one in decisions if one.rule == rule.name and one.fits]
        if not fitting:
            continue
        to = {name: formats_for(rule, config.destinations[name]) for name in rule.to}
        forms = tuple(form for form in rule.forms if any(form in taken for taken in to.values()))
        if rule.whole_study:
            mine = [one for one in decisions if one.rule == rule.name and not one.elsewhere]
            images = [one.series for one in mine if one.series.images]
            objects = [one for series in images for one in series.images]
            found.append(RoutedSeries(rule, _names(one.path for one in objects), objects[0].study, forms, to))
        else:
            for series in fitting:
                found.append(RoutedSeries(rule, _names(one.path for one in series.images), series.uid, forms, to))
    return found


def _decisions(
    found: Sequence[SeriesCandidate],
    senders: Sequence[str],
    rules: Sequence[RoutingRule],
    elsewhere: Callable[[str], bool],
) -> Iterator[RuleDecision]:
    for rule in rules:
        for series in found:
            if elsewhere(series.uid):
                told = "Left alone: its Series Instance UID is in another study, too, and a series is of one study."
                yield RuleDecision(rule.name, series, False, told, elsewhere=True)
            elif against := _against(rule, series, senders):
                yield RuleDecision(rule.name, series, False, f"Left alone: {against}.")
            else:
                what = "the whole study is sent" if rule.whole_study else "it is sent"
                model = f" to the model {rule.model}" if rule.model else ""
                yield RuleDecision(
                    rule.name, series, True, f"It fits: {what}{model}, and {', '.join(rule.forms)} to {_and(rule.to)}."
                )


def _against(rule: RoutingRule, series: SeriesCandidate, senders: Sequence[str]) -> str:
    if not series.images:
        return f"it is no image but a {series.objects[0].non_image_kind}"
    if rule.senders and not set(rule.senders) & set(senders):
        return f"it came from {_and(sorted(senders)) or 'nobody known'} and not from {_and(rule.senders)}"
    return rule.mismatch(series)


def _names(paths: Iterator[Path]) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in paths))


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)
