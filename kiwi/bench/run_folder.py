"""The folder of a run: videos, ledger, scores, reports, and what is needed to read them again without the data.

OUT/run.json           the suite, its items, what was judged and by whom
    settings.json environment.json
    cases.json         the items
    videos/            edited videos that were generated here
    judgements.jsonl   the ledger
    scores.csv metrics.csv report.md report.tex gallery.html
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kiwi.bench import report
from kiwi.bench.case import Case
from kiwi.bench.gallery import Shown, write_gallery
from kiwi.bench.report import Found
from kiwi.bench.scoring import ItemScore
from kiwi.bench.suites import Suite, read_suite
from kiwi.environment import environment
from kiwi.errors import InputError
from kiwi.media.files import write_json, write_text
from kiwi.media.run_dir import open_run_dir, read_record

_RUN, _CASES, _SCORES = "run.json", "cases.json", "scores.csv"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a folder's judgements are of; a folder holds one.

    Args:
        name: of the suite.
        title: of what was judged.
        items: fingerprint of the items.
        judge, version: who judged.
        rubrics: hash by category.
        origin: of the rubrics, "own" or "official".
    """

    name: str
    title: str
    items: str
    judge: str
    version: str
    rubrics: Mapping[str, str]
    origin: str


def claim_folder(out: Path, identity: Identity) -> None:
    """Make a run's folder, or find that it is ours to go on with.

    Raises:
        InputError: it holds a run of something else, or other things.
    """
    open_run_dir(out / _RUN, _plain(identity), "a run of a benchmark", allowed=("data", "videos"))


def write_begun(out: Path, cases: Sequence[Case], settings: Mapping[str, Any]) -> None:
    """Write what a run is of and how it was called, before it works."""
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


def fingerprint(cases: Sequence[Case]) -> str:
    """The same for the same items, wherever their files lie."""
    said = [
        [case.id, case.category, case.instruction, case.source.name, case.reference and case.reference.name]
        for case in cases
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's folder, read again.

    Args:
        folder: where it lies.
        identity: what it is of.
        suite: its benchmark.
        cases: its items.
        scored: items with the scores that the report has.
    """

    folder: Path
    identity: Identity
    suite: Suite
    cases: Sequence[Case]
    scored: Sequence[ItemScore]


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
    suite = read_suite(identity.name)
    return Run(folder=folder, identity=identity, suite=suite, cases=cases, scored=_scored(folder, suite, cases))


def _scored(folder: Path, suite: Suite, cases: Sequence[Case]) -> list[ItemScore]:
    """What the report was made of: the ledger may hold answers about other edits too."""
    if not (file := folder / _SCORES).is_file():
        raise InputError(f"{folder} has no scores yet", fix="finish the run: the same command goes on")
    by_item: dict[str, dict[str, tuple[float, float, int]]] = {}
    try:
        for line in csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"), newline="")):
            values = float(line["raw"]), float(line["capped"]), int(line["repeats"])
            by_item.setdefault(line["item"], {})[line["dimension"]] = values
        scored = []
        for case in cases:
            names = suite.categories[case.category].dimensions
            if (found := by_item.get(case.id)) is not None:
                raw, under = ({name: found[name][kind] for name in names} for kind in (0, 1))
                scored.append(ItemScore(case=case, raw=raw, capped=under, repeats=found[names[0]][2]))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as problem:
        raise InputError(f"{file} cannot be read", got=problem, fix="run the same command again") from None
    return scored


def write_reports(out: Path, found: Found, shown: Sequence[Shown] | None) -> None:
    """Scores, reports and, unless there is nothing to show in it, the gallery."""
    write_text(out / _SCORES, report.items_table(found.scored).csv())
    write_text(out / "report.md", report.markdown(found))
    write_text(out / "report.tex", report.latex(found))
    title = f"{found.suite.title}: {found.title}"
    if found.metrics is not None:
        write_text(out / "metrics.csv", found.metrics.csv())
    if shown is not None:
        about = [report.headline(found), report.notes(found)[0]]
        write_gallery(out / "gallery.html", title, about, report.warnings(found), shown)


def as_item(case: Case, item: str) -> Case:
    """A control or an anchor as an item of its own."""
    return replace(case, id=item)


def _plain(identity: Identity) -> dict[str, Any]:
    return {**vars(identity), "rubrics": dict(identity.rubrics)}
