"""Matching of series with routing rules, with reasons; nothing is sent, so rules can be tried in advance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from semiseg.volumes.dicom_index import DicomObject
from semiseg.volumes.series_rules import SeriesCandidate, group_by_series
from server.gateway.config import FormatName, GatewayConfig, RoutingRule, formats_for
from server.gateway.job_payloads import SegmentPayload


@dataclass(frozen=True)
class RuleDecision:
    """Decision of one rule on one series.

    Attributes:
        rule: Name of the rule.
        series: The series.
        fits: True if the rule matches the series.
        reason: Reason for the decision, as a sentence.
        elsewhere: True if another study holds a part of the series, so that no rule sends it.
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
        rule: Rule that matched.
        files: Names of the files that are sent, in order.
        series: UID of the series, or of the study for a rule of whole studies.
        forms: Output formats to request.
        to: Output formats for each destination, by its name.
    """

    rule: RoutingRule
    files: tuple[str, ...]
    series: str
    forms: tuple[FormatName, ...]
    to: dict[str, tuple[FormatName, ...]]

    def key(self, study: str) -> str:
        """Return a key that depends on instances, model, formats and destinations, so that no work is repeated."""
        told = [study, self.rule.name, self.rule.model, self.forms, sorted(self.to.items()), sorted(self.files)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def payload(self, study: str, series: str) -> SegmentPayload:
        """Return the payload of the `segment` job, with the names of its study and series."""
        return SegmentPayload(
            study=study,
            rule=self.rule.name,
            series=series,
            model=self.rule.model,
            files=self.files,
            forms=self.forms,
            to=self.to,
        )


def apply_rules(
    objects: Sequence[DicomObject],
    senders: Sequence[str],
    rules: Sequence[RoutingRule],
    elsewhere: Callable[[str], bool] = lambda series: False,
) -> list[RuleDecision]:
    """Return the decision of each rule on each series.

    Args:
        objects: Instances of one study.
        senders: AE titles of the senders of the study.
        rules: Rules of the configuration.
        elsewhere: Function that returns True for the UID of a series that another study holds, too.
    """
    return list(_decisions(group_by_series(objects), senders, rules, elsewhere))


def route_series(decisions: Sequence[RuleDecision], config: GatewayConfig) -> list[RoutedSeries]:
    """Return the scans to segment."""
    found = []
    for rule in config.rules:
        fitting = [one.series for one in decisions if one.rule == rule.name and one.fits]
        if not fitting:
            continue
        to = {name: formats_for(rule, config.destinations[name]) for name in rule.to}
        forms = tuple(form for form in rule.output_formats if any(form in taken for taken in to.values()))
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
                told = "Not sent: its Series Instance UID is also in another study, and a series belongs to one study."
                yield RuleDecision(rule.name, series, False, told, elsewhere=True)
            elif against := _against(rule, series, senders):
                yield RuleDecision(rule.name, series, False, f"Not sent: {against}.")
            else:
                what = "the whole study is sent" if rule.whole_study else "it is sent"
                model = f" to the model {rule.model}" if rule.model else ""
                results = f"its results ({', '.join(rule.output_formats)}) to {_and(rule.to)}"
                yield RuleDecision(rule.name, series, True, f"It matches: {what}{model}, and {results}.")


def _against(rule: RoutingRule, series: SeriesCandidate, senders: Sequence[str]) -> str:
    if not series.images:
        return f"it is not an image series but a {series.objects[0].non_image_kind}"
    if rule.senders and not set(rule.senders) & set(senders):
        return f"it came from {_and(sorted(senders)) or 'an unknown sender'} and not from {_and(rule.senders)}"
    return rule.mismatch(series)


def _names(paths: Iterator[Path]) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in paths))


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)
