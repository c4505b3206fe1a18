"""Put an explanation beside every row on which readers disagree; fail where one has none.

    python -m docs.readers.explain RAW.csv... --out TABLE.csv

A rule of explanations.yaml names which rows it explains, who is right, and the paragraph that says so. `fault` rules
are faults of this product; there are none now, and a test holds that. With `other` ones this product is right.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

AGREED_OUTCOMES = frozenset({"agree", "refused"})


@dataclass(frozen=True)
class ExplanationRule:
    """An explanation of rows.

    Attributes:
        fields: regular expressions, by column, that all have to be found.
        who: "fault" of this product, "other" reader's way, or "unclear" where the standard does not decide.
        words: the explanation, with its paragraph.
    """

    fields: dict[str, str]
    who: Literal["fault", "other", "unclear"]
    words: str

    def fits(self, row: dict[str, str]) -> bool:
        """Whether it explains a row."""
        return all(re.search(pattern, row.get(name, "")) for name, pattern in self.fields.items())


def load_rules(kind: str) -> list[ExplanationRule]:
    """The rules for the tables of `real` or of `made` series."""
    known = yaml.safe_load(Path(__file__).with_name("explanations.yaml").read_text(encoding="utf-8"))
    return [ExplanationRule(one["where"], one["who"], one["words"]) for one in known[kind]]


def explain_row(row: dict[str, str], rules: list[ExplanationRule]) -> str:
    """The explanation of a row, "" where it has none."""
    found = next((rule for rule in rules if rule.fits(row)), None)
    return f"{found.who}: {found.words}" if found else ""


def main() -> int:
    """Write the table; exit code 1 where a disagreement has no explanation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    counts, open_rows, rows = Counter[str](), 0, []
    for path in options.raw:
        with path.open(newline="", encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
    rules = load_rules("made" if "case" in rows[0] else "real")
    for row in rows:
        row["explanation"] = "" if row["outcome"] in AGREED_OUTCOMES else explain_row(row, rules)
        counts[f"{row['outcome']} {row['explanation'].partition(':')[0]}".strip()] += 1
        if row["outcome"] not in AGREED_OUTCOMES and not row["explanation"]:
            open_rows += 1
            print("unexplained:", {name: text[:90] for name, text in row.items()})
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _short(text) for name, text in row.items()} for row in rows)
    print(len(rows), dict(sorted(counts.items())))
    return 1 if open_rows else 0


def _short(text: str) -> str:
    """A cell without addresses in memory and folders of one machine, and not endless."""
    text = re.sub(r"0x[0-9a-f]{8,}", "0x", text)
    return re.sub(r"(?<![\w.+)])/(?:[^/\s:]+/)+", "", text)[:400]


if __name__ == "__main__":
    sys.exit(main())
