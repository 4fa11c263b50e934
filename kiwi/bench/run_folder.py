"""The folder of a run, with all that is needed to read the run again without the data.

OUT/run.json           the suite, its items, the editor and the judge
    settings.json environment.json
    cases.json         the items
    videos/            edited videos that were generated
    judgements.jsonl   the ledger
    scores.csv metrics.csv report.md report.tex gallery.html
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kiwi.bench import report as reports
from kiwi.bench.gallery import GalleryCard, write_gallery
from kiwi.bench.options import BenchmarkOptions
from kiwi.bench.report import BenchmarkReport
from kiwi.bench.scoring import ItemScore
from kiwi.bench.suites import BenchmarkItem, Suite, read_suite
from kiwi.environment import environment
from kiwi.errors import InputError
from kiwi.media.files import write_json, write_text
from kiwi.media.run_dir import open_run_dir, read_record
from kiwi.spec import to_dict

_RUN, _ITEMS, _SCORES = "run.json", "cases.json", "scores.csv"


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What the judgements in a folder belong to, as in run.json; a folder holds one run.

    Args:
        name: of the suite.
        title: of the editor.
        items: fingerprint of the items.
        judge, version: of the judge.
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


def open_run(out: Path, identity: RunIdentity) -> None:
    """Create a run's folder, or check that it holds this run and can be resumed.

    Raises:
        InputError: it holds another run, or something else.
    """
    open_run_dir(out / _RUN, asdict(identity), "a run of a benchmark", allowed=("data", "videos"))


def write_inputs(out: Path, items: Sequence[BenchmarkItem], options: BenchmarkOptions) -> None:
    """Write a run's items, options and environment before it starts."""
    write_json(out / _ITEMS, [{key: value and str(value) for key, value in vars(item).items()} for item in items])
    write_json(out / "settings.json", to_dict(options))
    write_json(out / "environment.json", environment())


def items_fingerprint(items: Sequence[BenchmarkItem]) -> str:
    """A hash that is the same for the same items, wherever their files are."""
    rows = [
        [item.id, item.category, item.instruction, item.source.name, item.reference and item.reference.name]
        for item in items
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class BenchmarkRun:
    """A finished run, read from its folder.

    Args:
        folder: of the run.
        identity: from run.json.
        suite: the benchmark.
        items: all of them.
        scored: items with a score, as in the report.
    """

    folder: Path
    identity: RunIdentity
    suite: Suite
    items: Sequence[BenchmarkItem]
    scored: Sequence[ItemScore]


def read_run(folder: Path) -> BenchmarkRun:
    """A finished run. Raises InputError for a folder of something else, or of a run that is not finished."""
    if not (folder / _RUN).is_file():
        raise InputError(
            f"{folder} is not a run of a benchmark", code="not-a-run", expected=f"a folder of `kiwi bench`, with {_RUN}"
        )
    try:
        identity = RunIdentity(**read_record(folder / _RUN))
        items = [_read_item(entry) for entry in json.loads((folder / _ITEMS).read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise InputError(f"the records of {folder} cannot be read", code="unreadable-file", got=problem) from None
    suite = read_suite(identity.name)
    return BenchmarkRun(
        folder=folder, identity=identity, suite=suite, items=items, scored=_read_scores(folder, suite, items)
    )


def _read_item(entry: Mapping[str, str | None]) -> BenchmarkItem:
    paths = {name: None if (path := entry[name]) is None else Path(path) for name in ("source", "reference")}
    return BenchmarkItem(**{**entry, **paths})  # type: ignore[arg-type]


def _read_scores(folder: Path, suite: Suite, items: Sequence[BenchmarkItem]) -> list[ItemScore]:
    """The scores that the report was made of; the ledger may hold answers about other edits too."""
    if not (file := folder / _SCORES).is_file():
        raise InputError(f"{folder} has no scores yet", code="unfinished-run", fix="rerun its command to resume it")
    rows: dict[str, dict[str, tuple[float, float, int]]] = {}
    try:
        for line in csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"), newline="")):
            values = float(line["raw"]), float(line["capped"]), int(line["repeats"])
            rows.setdefault(line["item"], {})[line["dimension"]] = values
        scored = []
        for item in items:
            names = suite.categories[item.category].dimensions
            if (row := rows.get(item.id)) is not None:
                raw, capped = ({name: row[name][column] for name in names} for column in (0, 1))
                scored.append(ItemScore(item=item, raw=raw, capped=capped, repeats=row[names[0]][2]))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as problem:
        raise InputError(
            f"{file} cannot be read", code="unreadable-file", got=problem, fix="rerun the run's command"
        ) from None
    return scored


def write_reports(report: BenchmarkReport, cards: Sequence[GalleryCard] | None) -> None:
    """Write scores, reports and, unless there are no cards, the gallery."""
    out = report.folder
    write_text(out / _SCORES, reports.items_table(report.scored).to_csv())
    write_text(out / "report.md", reports.markdown(report))
    write_text(out / "report.tex", reports.latex(report))
    if report.metrics is not None:
        write_text(out / "metrics.csv", report.metrics.to_csv())
    if cards is not None:
        title, about = f"{report.suite.title}: {report.title}", [reports.headline(report), reports.notes(report)[0]]
        write_gallery(out / "gallery.html", title, about, reports.warnings(report), cards)
