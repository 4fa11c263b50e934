"""Published tables: the rows that a result is held against, and which of them are in doubt."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kiwi.bench.suites import DEFINITIONS, Suite

_ABOUT = ("method", "params", "judge", "overall", "doubt", "source")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of a published table.

    Args:
        method, params: name and size of the editor.
        judge: who scored it: numbers of other judges are not comparable.
        overall: as published.
        columns: by name, as published.
        doubt: what is wrong with the row; empty if nothing is known to be.
        source: where it stands.
    """

    method: str
    params: str
    judge: str
    overall: float
    columns: Mapping[str, float]
    doubt: str
    source: str

    @property
    def mean(self) -> float:
        """Of the columns, which the overall should be."""
        return sum(self.columns.values()) / len(self.columns)


def published_rows(name: str, suite: Suite) -> Sequence[Published]:
    """The rows of a suite; none where nothing is published."""
    file = DEFINITIONS / name / "published.csv"
    if not file.is_file():
        return ()
    rows = []
    for line in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
        columns = {column: float(value) for column, value in line.items() if column not in _ABOUT}
        about = {key: line[key] for key in _ABOUT if key != "overall"}
        rows.append(Published(**about, overall=float(line["overall"]), columns=columns))
    return rows
