"""The folder of a run, which can be read again without the benchmark's data.

OUT/run.json           the suite, its items, the editor and the judge
    settings.json environment.json
    cases.json         the items
    videos/            edited videos that were generated
    judgements.jsonl   the ledger
    scores.csv metrics.csv report.md report.tex gallery.html
"""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kiwi.bench.options import BenchmarkOptions
from kiwi.bench.scoring import SCORE_KINDS, ItemScore
from kiwi.bench.suites import BenchmarkItem, Suite, read_suite
from kiwi.environment import environment
from kiwi.errors import InputError
from kiwi.media import run_dir
from kiwi.media.files import write_json
from kiwi.media.run_dir import open_run_dir, read_record
from kiwi.reading import read_json
from kiwi.spec import from_dict, to_dict
from kiwi.tables import escape_csv

_RUN_FILE, _ITEMS_FILE, SCORES_FILE = "run.json", "cases.json", "scores.csv"
_KIND, _ALLOWED = "a run of a benchmark", ("data", "videos")


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """Content of run.json: a folder holds one run, and a resumed run must match it.

    Args:
        name: name of the suite.
        title: name of the editor.
        items: hash of the items (`hash_items`).
        judge, version: `Judge.name` and `Judge.version`.
        rubrics: `Rubric.hash` by category.
        origin: origin of the rubrics, "own" or "official".
    """

    name: str
    title: str
    items: str
    judge: str
    version: str
    rubrics: Mapping[str, str]
    origin: str


def require_no_other_files(out: Path) -> None:
    """Raise InputError if a folder holds files but no run; called before data is rendered into it."""
    run_dir.require_no_other_files(out / _RUN_FILE, _KIND, _ALLOWED)


def open_run(out: Path, identity: RunIdentity) -> None:
    """Create a run's folder, or check that an existing folder holds this run.

    Raises:
        InputError: the folder holds another run or other files.
    """
    open_run_dir(out / _RUN_FILE, asdict(identity), _KIND, _ALLOWED)


def write_inputs(out: Path, items: Sequence[BenchmarkItem], options: BenchmarkOptions) -> None:
    """Write a run's items, options and environment before it starts."""
    write_json(out / _ITEMS_FILE, [{key: value and str(value) for key, value in vars(item).items()} for item in items])
    write_json(out / "settings.json", to_dict(options))
    write_json(out / "environment.json", environment())


def hash_items(items: Sequence[BenchmarkItem]) -> str:
    """Hash the items independently of the location of their files."""
    rows = [
        [item.id, item.category, item.instruction, item.source.name, item.reference and item.reference.name]
        for item in items
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class BenchmarkRun:
    """A finished run, read from its folder: all items of the suite, and the scores of those that have one."""

    folder: Path
    identity: RunIdentity
    suite: Suite
    items: Sequence[BenchmarkItem]
    scored: Sequence[ItemScore]


def read_run(folder: Path) -> BenchmarkRun:
    """Read a finished run. Raises InputError if the folder holds none, or one that is unfinished."""
    if not (folder / _RUN_FILE).is_file():
        expected = f"a folder with {_RUN_FILE}"
        raise InputError(f"{folder} is not the folder of a benchmark run", code="not-a-run", expected=expected)
    try:
        identity = RunIdentity(**read_record(folder / _RUN_FILE))
        entries = read_json(folder / _ITEMS_FILE)
        items: list[BenchmarkItem] = [from_dict(BenchmarkItem, entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{_RUN_FILE} or {_ITEMS_FILE} of {folder} cannot be read"
        raise InputError(problem, code="unreadable-file", got=repr(error)) from None
    suite = read_suite(identity.name)
    scored = _read_scores(folder, suite, items)
    return BenchmarkRun(folder=folder, identity=identity, suite=suite, items=items, scored=scored)


def _read_scores(folder: Path, suite: Suite, items: Sequence[BenchmarkItem]) -> list[ItemScore]:
    """Read the scores of the report; the ledger may also hold answers about other edits."""
    if not (file := folder / SCORES_FILE).is_file():
        raise InputError(f"{folder} has no scores yet", code="unfinished-run", fix="rerun its command to finish it")
    rows: dict[str, dict[str, dict[str, str]]] = {}
    try:
        for line in csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"), newline="")):
            rows.setdefault(line["item"], {})[line["dimension"]] = line
        scored = []
        for item in items:
            names = suite.categories[item.category].dimensions
            if (row := rows.get(escape_csv(item.id))) is not None:
                raw, capped = ({name: float(row[name][kind]) for name in names} for kind in SCORE_KINDS)
                scored.append(ItemScore(item=item, raw=raw, capped=capped, repeats=int(row[names[0]]["repeats"])))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        fix = "rerun the run's command to write it again"
        raise InputError(f"{file} cannot be read", code="unreadable-file", got=repr(error), fix=fix) from None
    return scored
