"""Manifests: lists of edits on disk (CSV, JSONL or parquet), checked as a whole before work starts.

The published columns are `src_video, tgt_video, prompt[, ref_image][, iid][, edited_type]`; RefVIE's parquet holds
encoded images in `ref_image_bytes` instead of paths. Columns of ours may say where an edit shows (`mask`) and what its
target shows (`caption`). A manifest becomes a list of `EditRecord`, whose files exist and lie inside the base folder.
"""

from __future__ import annotations

import csv
import difflib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kiwi.errors import InputError, KiwiError, ManifestError
from kiwi.media.files import resolve_inside
from kiwi.media.image import check_image

logger = logging.getLogger(__name__)

_COLUMNS = ["src_video", "tgt_video", "prompt", "ref_image", "ref_image_bytes", "iid", "id"]
_COLUMNS += ["edited_type", "mask", "caption"]
_SHOWN = 5  # problems told in full


@dataclass(frozen=True, kw_only=True)
class EditRecord:
    """One row of a manifest: an edit from a source to a target.

    `references` are image files or encoded images, in the manifest's order; `where` names the row in
    messages ("pairs.csv, line 7"). `id` is unique in the manifest and does not change between reads. `mask` is a
    video as long as the target (an image for a pair of images), white where the edit may show. `caption` says what the
    target shows; `answer` is of questions.
    """

    id: str
    source: Path
    target: Path | None
    instruction: str
    references: tuple[Path | bytes, ...] = ()
    category: str | None = None
    answer: str = ""
    mask: Path | None = None
    caption: str = ""
    where: str


def read_manifest(path: str | Path, *, base: Path | None = None, require_target: bool = True) -> list[EditRecord]:
    """Read and check a manifest; its paths are relative to `base` (default: the manifest's folder).

    Several reference images are a list in JSONL and parquet, and separated by `|` in CSV. Without
    `require_target` the target may be left out (inference).

    Raises:
        ManifestError: whatever is wrong with it, in one message: the first five problems with their
            lines and the count of all of them.
    """
    path = Path(path)
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ManifestError(f"The manifest {path} has an unknown suffix", wanted=", ".join(readers))
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise ManifestError(f"The manifest {path} {state}", fix="give the path of a manifest file")
    folder = path.parent if base is None else Path(base)
    if not folder.is_dir():
        raise ManifestError(f"The base folder {folder} of the manifest {path} does not exist", fix="give another base")

    required = ("src_video", "tgt_video", "prompt") if require_target else ("src_video", "prompt")
    checker = _Checker(path, _Files(folder), require_target)
    try:
        for number, row in enumerate(reader(path, required), start=1):
            checker.add(number, row)
    except UnicodeDecodeError as problem:
        raise ManifestError(f"The manifest {path} is not UTF-8 text ({problem.reason})", fix="save as UTF-8") from None
    return checker.finish()


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row as found: its cells by column, or why there are none."""

    where: str
    cells: dict[str, Any]
    problem: str | None = None


class _Checker:
    """Turns rows into records and gathers problems, of which it keeps the first few and the count."""

    def __init__(self, path: Path, files: _Files, require_target: bool) -> None:
        self.path, self.files, self.require_target = path, files, require_target
        self.records: list[EditRecord] = []
        self.first_seen: dict[str, str] = {}
        self.problems: list[str] = []
        self.count = 0

    def add(self, number: int, row: _Row) -> None:
        if row.problem is not None:
            self._problem(row, row.problem)
            return
        before, cells = self.count, row.cells
        record_id = self._id(number, row)
        instruction = self._text(row, "prompt") or ""
        if not instruction and isinstance(cells.get("prompt"), str | None):
            self._problem(row, "the prompt is empty")
        source = self._file(row, "src_video", required=True)
        target = self._file(row, "tgt_video", required=self.require_target)
        references = self._references(row)
        mask = self._file(row, "mask", required=False)
        if self.count == before and source is not None:
            record = EditRecord(
                id=record_id,
                source=source,
                target=target,
                instruction=instruction,
                references=references,
                category=self._text(row, "edited_type"),
                mask=mask,
                caption=self._text(row, "caption") or "",
                where=row.where,
            )
            self.records.append(record)

    def finish(self) -> list[EditRecord]:
        if self.count:
            noun = "problem" if self.count == 1 else "problems"
            more = f"; and {self.count - _SHOWN} more" if self.count > _SHOWN else ""
            raise ManifestError(
                f"The manifest {self.path} has {self.count} {noun}: {'; '.join(self.problems)}{more}",
                fix=f"mend these rows (paths are relative to {self.files.base})",
            )
        if not self.records:
            raise ManifestError(f"The manifest {self.path} is empty", got="no rows", wanted="one row an edit")
        return self.records

    def _id(self, number: int, row: _Row) -> str:
        given = next((row.cells[k] for k in ("iid", "id") if row.cells.get(k) not in (None, "")), None)
        record_id = f"{self.path.stem}:{number}" if given is None else str(given).strip()
        if record_id in self.first_seen:
            self._problem(row, f"the id {record_id!r} was taken before ({self.first_seen[record_id]})")
        self.first_seen.setdefault(record_id, row.where)
        return record_id

    def _text(self, row: _Row, column: str) -> str | None:
        value = row.cells.get(column)
        if value is not None and not isinstance(value, str):
            self._problem(row, f"{column} is not text but {type(value).__name__}")
            return None
        return (value or "").strip() or None

    def _file(self, row: _Row, column: str, *, required: bool) -> Path | None:
        text = self._text(row, column)
        if text is None:
            if required and isinstance(row.cells.get(column), str | None):
                self._problem(row, f"{column} is empty")
            return None
        try:
            return self.files.find(text, column)
        except KiwiError as problem:
            self._problem(row, str(problem))
            return None

    def _references(self, row: _Row) -> tuple[Path | bytes, ...]:
        found: list[Path | bytes] = []
        try:
            for text in _as_list(row.cells.get("ref_image"), str, "ref_image"):
                if text.strip():
                    image = self.files.find(text.strip(), "ref_image")
                    self.files.check_image(image)
                    found.append(image)
            for index, data in enumerate(_as_list(row.cells.get("ref_image_bytes"), bytes, "ref_image_bytes")):
                check_image(data, name=f"reference {index + 1}")
                found.append(data)
        except KiwiError as problem:
            self._problem(row, str(problem))
        return tuple(found)

    def _problem(self, row: _Row, text: str) -> None:
        self.count += 1
        if self.count <= _SHOWN:
            self.problems.append(f"{row.where}: {text.rstrip('.')}")


class _Files:
    """Looks files up below a base folder by listing each folder once: manifests of a million rows stay cheap."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._folders: dict[str, tuple[Path, dict[str, os.DirEntry[str]]]] = {}
        self._images: dict[Path, str | None] = {}

    def find(self, text: str, column: str) -> Path:
        """The file that `text` names; InputError if it is missing, a folder, or outside the base folder."""
        relative = PurePosixPath(text)
        if relative.is_absolute() or relative.name in ("", "..") or "\\" in text or "\0" in text:
            return self._one(resolve_inside(self.base, text, column), text, column)
        parent = str(relative.parent)
        if parent not in self._folders:
            try:
                folder = resolve_inside(self.base, parent, column)
            except InputError:  # ask for the whole path, so that the message shows what the manifest says
                return self._one(resolve_inside(self.base, text, column), text, column)
            self._folders[parent] = (folder, _listing(folder))
        folder, entries = self._folders[parent]
        entry = entries.get(relative.name)
        if entry is not None and not entry.is_symlink() and entry.is_file():
            return folder / relative.name
        # A symlink, a folder, a missing file, or a file system that ignores case: the rare ones, asked singly.
        return self._one(resolve_inside(self.base, text, column), text, column)

    def check_image(self, path: Path) -> None:
        """Raise the MediaError of a reference that is no image; a file is opened once, however often it is named."""
        if path not in self._images:
            try:
                check_image(path)
                self._images[path] = None
            except KiwiError as problem:
                self._images[path] = str(problem)
        problem_text = self._images[path]
        if problem_text is not None:
            raise InputError(problem_text)

    def _one(self, resolved: Path, text: str, column: str) -> Path:
        if resolved.is_file():
            return resolved
        state = "is a folder" if resolved.is_dir() else "does not exist"
        raise InputError(f"the {column} {text!r} {state}")


def _listing(folder: Path) -> dict[str, os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry for entry in entries}
    except OSError:
        return {}  # each file in it is then looked up singly and reported as missing


def _as_list(value: Any, kind: type, column: str) -> list[Any]:
    """A cell that may hold nothing, one value, a list, or (text) a list in JSON."""
    if value is None or value == "":
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise InputError(f"{column} looks like a JSON list but is none", got=repr(value[:60])) from None
    values = value if isinstance(value, list) else [value]
    for item in values:
        if not isinstance(item, kind):
            raise InputError(f"{column} holds {type(item).__name__}", wanted=f"{kind.__name__} or a list of it")
    return values


def _csv_rows(path: Path, required: tuple[str, ...]) -> Iterator[_Row]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        header: list[str] = []
        line = 1
        try:
            for cells in reader:
                where = f"{path.name}, line {line}"
                line = reader.line_num + 1  # where the next row starts; a quoted cell may span lines
                if not cells:
                    continue
                if not header:
                    header = [name.strip() for name in cells]
                    _check_columns(path, where, header, required)
                elif len(cells) != len(header):
                    problem = f"it has {len(cells)} cells where the header has {len(header)} columns"
                    yield _Row(where=where, cells={}, problem=problem)
                else:
                    row: dict[str, Any] = dict(zip(header, cells, strict=True))
                    if row.get("ref_image") and not row["ref_image"].lstrip().startswith("["):
                        row["ref_image"] = row["ref_image"].split("|")
                    yield _Row(where=where, cells=row)
        except csv.Error as problem:
            yield _Row(where=f"{path.name}, line {line}", cells={}, problem=f"it is not valid CSV ({problem})")


def _jsonl_rows(path: Path, required: tuple[str, ...]) -> Iterator[_Row]:
    known_headers: set[tuple[str, ...]] = set()
    with path.open(encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, start=1):
            where = f"{path.name}, line {line}"
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as problem:
                message = f"it is not valid JSON ({str(problem).split(': line')[0]})"
                yield _Row(where=where, cells={}, problem=message)
                continue
            if not isinstance(row, dict):
                yield _Row(where=where, cells={}, problem=f"it is not a JSON object but {type(row).__name__}")
                continue
            problem_text = None
            if tuple(row) not in known_headers:
                problem_text = _column_problem(list(row), required)
                if problem_text is None:
                    known_headers.add(tuple(row))
            yield _Row(where=where, cells=row, problem=problem_text)


def _parquet_rows(path: Path, required: tuple[str, ...]) -> Iterator[_Row]:
    import pyarrow  # heavy, and only this format needs it
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        header = list(table.schema_arrow.names)
        _check_columns(path, f"{path.name}, schema", header, required)
        columns = [name for name in header if name in _COLUMNS]
        number = 0
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield _Row(where=f"{path.name}, row {number}", cells=row)
    except (pyarrow.ArrowException, OSError) as problem:
        raise ManifestError(f"The manifest {path} cannot be read as parquet ({problem})") from None


def _check_columns(path: Path, where: str, found: list[str], required: tuple[str, ...]) -> None:
    problem = _column_problem(found, required)
    if problem is not None:
        raise ManifestError(f"The manifest {path} has wrong columns ({where}): {problem}", fix="rename the columns")
    other = [name for name in found if name not in _COLUMNS]
    if other:
        logger.info("%s: columns that are not used: %s", path, ", ".join(other))


def _column_problem(found: list[str], required: tuple[str, ...]) -> str | None:
    """What is wrong with the column names; unknown ones are harmless unless they look like a known one."""
    problems = [f"the column {name!r} stands there twice" for name in sorted(set(found)) if found.count(name) > 1]
    taken: set[str] = set()
    for name in found:
        close = difflib.get_close_matches(name.strip().lower(), _COLUMNS, n=1, cutoff=0.8)
        if name not in _COLUMNS and close and close[0] not in found:
            problems.append(f"unknown column {name!r}, did you mean {close[0]!r}?")
            taken.add(close[0])
    missing = [name for name in required if name not in found and name not in taken]
    if missing:
        problems.insert(0, f"missing {', '.join(missing)}")
    return f"{'; '.join(problems)} (found: {', '.join(map(str, found))})" if problems else None
