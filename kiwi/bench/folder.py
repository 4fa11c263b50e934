"""The folder of a run: videos, ledger, scores, reports, and what is needed to read them again without the data.

OUT/run.json           the suite, what was judged and by whom
    settings.json environment.json
    cases.json         the items
    videos/            edited videos that were generated here
    judgements.jsonl   the ledger
    scores.csv report.md report.tex gallery.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kiwi.bench import ledger, report
from kiwi.bench.case import Case
from kiwi.bench.gallery import Shown, write_gallery
from kiwi.bench.ledger import Judgement, read_ledger
from kiwi.bench.report import Found
from kiwi.bench.scoring import ItemScore, item_scores
from kiwi.bench.suites import Suite, read_suite
from kiwi.environment import environment
from kiwi.errors import InputError
from kiwi.media.claim import claim, read_record
from kiwi.media.files import write_json, write_text

_RUN, _CASES = "run.json", "cases.json"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a folder's judgements are of; a folder holds one.

    Args:
        name: of the suite.
        title: of what was judged.
        data: folder of the benchmark's data.
        judge, version: who judged.
        rubrics: hash by category.
        origin: of the rubrics, "own" or "official".
    """

    name: str
    title: str
    data: str
    judge: str
    version: str
    rubrics: Mapping[str, str]
    origin: str


def begin(out: Path, identity: Identity, cases: Sequence[Case], settings: Mapping[str, Any]) -> None:
    """Make a run's folder, or go on with it.

    Raises:
        InputError: it holds a run of something else, or other things.
    """
    claim(out / _RUN, _plain(identity), "a run of a benchmark", beside=("data", "videos"))
    listed = [
        {
            "id": case.id,
            "category": case.category,
            "instruction": case.instruction,
            "source": str(case.source),
            "reference": None if case.reference is None else str(case.reference),
        }
        for case in cases
    ]
    write_json(out / _CASES, listed)
    write_json(out / "settings.json", dict(settings))
    write_json(out / "environment.json", environment())


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's folder, read again.

    Args:
        folder: where it lies.
        identity: what it is of.
        suite: its benchmark.
        cases: its items.
        judgements: all of its judge, of items, controls and anchors.
    """

    folder: Path
    identity: Identity
    suite: Suite
    cases: Sequence[Case]
    judgements: Sequence[Judgement]

    @property
    def of_items(self) -> list[Judgement]:
        """Judgements of the benchmark's items."""
        known = {case.id for case in self.cases}
        return [one for one in self.judgements if one.asked.item in known]

    def scores(self) -> list[ItemScore]:
        """Scores of the items that have any."""
        return item_scores(self.suite, self.cases, self.of_items)[0]


def read_run(folder: Path) -> Run:
    """Raises InputError for a folder that is none of a run."""
    if not (folder / _RUN).is_file():
        raise InputError(f"{folder} is no run of a benchmark", wanted=f"a folder that `kiwi bench` made, with {_RUN}")
    said = read_record(folder / _RUN)
    try:
        identity = Identity(**said)
        cases = [
            Case(**{**item, "source": Path(item["source"]), "reference": item["reference"] and Path(item["reference"])})
            for item in json.loads((folder / _CASES).read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise InputError(f"{folder} is no run of a benchmark that can be read", got=problem) from None
    judgements = [
        one
        for one in read_ledger(folder / ledger.FILE)
        if (one.asked.judge, one.asked.version) == (identity.judge, identity.version)
    ]
    return Run(folder=folder, identity=identity, suite=read_suite(identity.name), cases=cases, judgements=judgements)


def write_reports(out: Path, found: Found, shown: Sequence[Shown]) -> None:
    """Scores, reports and gallery."""
    write_text(out / "scores.csv", report.items_table(found.scored).csv())
    write_text(out / "report.md", report.markdown(found))
    write_text(out / "report.tex", report.latex(found))
    title = f"{found.suite.title}: {found.title}"
    write_gallery(out / "gallery.html", title, report.notes(found)[:1], report.warnings(found), shown)


def as_item(case: Case, item: str) -> Case:
    """A control or an anchor as an item of its own."""
    return replace(case, id=item)


def _plain(identity: Identity) -> dict[str, Any]:
    return {**vars(identity), "rubrics": dict(identity.rubrics)}
