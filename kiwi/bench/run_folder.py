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
from dataclasses import asdict, dataclass, field
from math import isclose
from pathlib import Path
from typing import Any

from kiwi.bench.ledger import LEDGER_FILE, Judgement, read_ledger
from kiwi.bench.options import BenchmarkOptions
from kiwi.bench.reply import HIGHEST, LOWEST
from kiwi.bench.scoring import SCORE_KINDS, ItemScore, score_items
from kiwi.bench.suites import BenchmarkItem, Suite, read_suite
from kiwi.environment import environment
from kiwi.errors import InputError
from kiwi.media import run_dir
from kiwi.media.files import write_json
from kiwi.media.journal import CHECKSUM, compute_checksum
from kiwi.media.run_dir import open_run_dir, read_record
from kiwi.reading import read_json
from kiwi.spec import from_dict, to_dict
from kiwi.tables import escape_csv

_RUN_FILE, _ITEMS_FILE, _SETTINGS_FILE, SCORES_FILE = "run.json", "cases.json", "settings.json", "scores.csv"
DATA_FOLDER = "data"
"""Folder in a run's folder for the items that `--data sandbox` renders."""

_KIND, _ALLOWED = "a run of a benchmark", (DATA_FOLDER, "videos")
_EDITOR_PREFIX = "editor's "


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
        editor: fingerprint of the weights and settings of sampling (`build_generator`) of generated videos; empty for
            given videos, whose content is in the keys of the judgements.
    """

    name: str
    title: str
    items: str
    judge: str
    version: str
    rubrics: Mapping[str, str]
    origin: str
    editor: Mapping[str, Any] = field(default_factory=dict)


def require_no_other_files(out: Path) -> None:
    """Raise InputError if a folder holds files but no run; called before data is rendered into it."""
    run_dir.require_no_other_files(out / _RUN_FILE, _KIND, _ALLOWED)


def require_same_rendering(out: Path, items: int) -> None:
    """Check a folder before items of the sandbox are rendered into it.

    Raises:
        InputError: the folder holds a run on other data, or on another number of items.
    """
    if not (out / _RUN_FILE).exists():
        return
    asked = expected = f"items {items}"
    world = out / DATA_FOLDER / "world.json"
    if world.exists():
        expected = f"items {read_record(world).get('items', items)}"
    elif not _has_rendered_data(out):  # otherwise they were deleted, to save space
        asked, expected = "--data sandbox", "the data of the run"
    if asked != expected:
        fix = "use the same settings to resume it, or choose another folder"
        problem = f"{out} holds {_KIND} with different settings"
        raise InputError(problem, code="changed-settings", got=asked, expected=expected, fix=fix)


def _has_rendered_data(out: Path) -> bool:
    """Whether the options recorded in a run's folder name the sandbox."""
    try:
        return bool(from_dict(BenchmarkOptions, read_json(out / _SETTINGS_FILE)).renders_data)
    except (OSError, ValueError, TypeError):
        return False


def open_run(out: Path, identity: RunIdentity) -> None:
    """Create a run's folder, or check that an existing folder holds this run.

    Raises:
        InputError: the folder holds another run or other files.
    """
    fields = asdict(identity)
    editor = {f"{_EDITOR_PREFIX}{name}": value for name, value in fields.pop("editor").items()}
    open_run_dir(out / _RUN_FILE, fields | editor, _KIND, _ALLOWED)


def write_inputs(out: Path, items: Sequence[BenchmarkItem], options: BenchmarkOptions) -> None:
    """Write a run's items, options and environment before it starts."""
    write_json(out / _ITEMS_FILE, [{key: value and str(value) for key, value in vars(item).items()} for item in items])
    write_json(out / _SETTINGS_FILE, to_dict(options))
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
        record = read_record(folder / _RUN_FILE)
        editor = {name: record.pop(name) for name in list(record) if name.startswith(_EDITOR_PREFIX)}
        identity = RunIdentity(**record, editor={name.removeprefix(_EDITOR_PREFIX): v for name, v in editor.items()})
        entries = read_json(folder / _ITEMS_FILE)
        items: list[BenchmarkItem] = [from_dict(BenchmarkItem, entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{_RUN_FILE} or {_ITEMS_FILE} of {folder} cannot be read"
        raise InputError(problem, code="unreadable-file", got=repr(error)) from None
    if hash_items(items) != identity.items:
        problem, fix = (
            f"{_ITEMS_FILE} of {folder} was changed after the run",
            "rerun the run's command to write it again",
        )
        raise InputError(problem, code="changed-file", fix=fix)
    suite = read_suite(identity.name)
    scored = _read_scores(folder, suite, items)
    return BenchmarkRun(folder=folder, identity=identity, suite=suite, items=items, scored=scored)


def _read_scores(folder: Path, suite: Suite, items: Sequence[BenchmarkItem]) -> list[ItemScore]:
    """Read the scores of the report, and hold them against the replies in the ledger.

    The ledger may also hold answers about other edits under the same names, so it does not say which scores count.
    """
    if not (file := folder / SCORES_FILE).is_file():
        raise InputError(f"{folder} has no scores yet", code="unfinished-run", fix="rerun its command to finish it")
    rows: dict[str, dict[str, dict[str, str]]] = {}
    duplicates: list[str] = []
    fix = "rerun the run's command to write it again"
    lines = _read_lines(file, fix)
    try:
        for line in lines:
            row = rows.setdefault(line["item"], {})
            duplicates += [f"{line['item']}, {line['dimension']}"] if line["dimension"] in row else []
            row[line["dimension"]] = line
        scored = []
        for item in items:
            names = suite.categories[item.category].dimensions
            if (row := rows.pop(escape_csv(item.id), {})) and row.keys() == set(names):
                raw, capped = ({name: float(row[name][kind]) for name in names} for kind in SCORE_KINDS)
                scored.append(ItemScore(item=item, raw=raw, capped=capped, repeats=int(row[names[0]]["repeats"])))
            elif row:
                raise KeyError(*sorted(row.keys() ^ set(names))[:1])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} cannot be read", code="unreadable-file", got=repr(error), fix=fix) from None
    if duplicates:
        got = "; ".join(duplicates[:3])
        raise InputError(f"{file} has several rows of one score", code="duplicate-row", got=got, fix=fix)
    if rows:
        raise InputError(f"{file} scores unknown items", code="unknown-item", got=", ".join(list(rows)[:3]), fix=fix)
    _check_scores(file, suite, scored, read_ledger(folder / LEDGER_FILE))
    return scored


def compute_row_checksum(cells: Sequence[str], row_count: int) -> str:
    """Compute the checksum of a row of scores.csv from its cells and the number of rows, none of which may be lost."""
    return compute_checksum([*cells, row_count])


def _read_lines(file: Path, fix: str) -> list[dict[str, str]]:
    """Read the rows of scores.csv; raise an InputError if some differ from their checksums, which old files lack."""
    try:
        rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"), newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{file} cannot be read", code="unreadable-file", got=repr(error), fix=fix) from None
    changed = [
        str(number)
        for number, row in enumerate(rows, 2)
        if CHECKSUM in row and row.pop(CHECKSUM) != compute_row_checksum(list(row.values()), len(rows))
    ]
    if changed:
        got = f"changed, added or removed rows, seen in line{'s' * (len(changed) > 1)} {', '.join(changed[:5])}"
        raise InputError(f"{file} was changed after the run", code="changed-file", got=got, fix=fix)
    return rows


def _check_scores(file: Path, suite: Suite, scored: Sequence[ItemScore], judgements: Sequence[Judgement]) -> None:
    """Raise an InputError for a score outside 1 to 5, or one that follows from no replies in the ledger."""
    by_question: dict[str, dict[str, list[Judgement]]] = {}
    for judgement in judgements:
        if judgement.scores is not None:
            questions = by_question.setdefault(judgement.key.item, {})
            questions.setdefault(judgement.key.replace(repeat=0).text, []).append(judgement)
    fix = "rerun the run's command to write it again"
    for score in scored:
        values = [*score.raw.values(), *score.capped.values()]
        if not all(LOWEST <= value <= HIGHEST for value in values):
            problem = f"{file} has a score of {score.item.id} that is not from 1 to 5"
            raise InputError(problem, code="out-of-range", got=values, fix=fix)
        candidates = (
            candidate
            for answers in by_question.get(score.item.id, {}).values()
            for last in [list({answer.key.repeat: answer for answer in answers}.items())]
            for candidate in score_items(suite, [score.item], [a for _, a in sorted(last)[: score.repeats]])[0]
        )
        if not any(_has_equal_scores(score, candidate) for candidate in candidates):
            problem = f"the scores of {score.item.id} in {file} are not those of the replies in {LEDGER_FILE}"
            raise InputError(problem, code="changed-file", got=values, fix=fix)


def _has_equal_scores(a: ItemScore, b: ItemScore) -> bool:
    pairs = [(a.scores(kind)[name], b.scores(kind)[name]) for kind in SCORE_KINDS for name in a.raw]
    return a.repeats == b.repeats and all(isclose(first, second, abs_tol=1e-6) for first, second in pairs)
