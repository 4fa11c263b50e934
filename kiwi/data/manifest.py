"""Manifests: lists of edits on disk (CSV, JSONL or parquet), checked as a whole before work starts.

The published columns are `src_video, tgt_video, prompt[, ref_image][, iid][, edited_type]`; RefVIE's parquet holds
encoded images in `ref_image_bytes` instead of paths. Two columns are ours: where an edit may show (`mask`) and what its
target shows (`caption`). A manifest becomes a list of `EditRecord`, whose files exist and are inside the base folder.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kiwi.data.clips import EncodedImage, ImageFile, VideoFile
from kiwi.data.manifest_rows import READERS, Row
from kiwi.errors import InputError, KiwiError, ManifestError
from kiwi.media.files import resolve_inside
from kiwi.media.image import check_image

_MAX_PROBLEMS = 5
"""Problems that a message describes; the others are counted."""


@dataclass(frozen=True, kw_only=True)
class EditRecord:
    """One row of a manifest: an edit from a source to a target.

    Args:
        id: unique in the manifest, and the same at every read.
        source: the video, or image, to edit.
        target: the edited one; None for inference.
        instruction: what to do.
        references: reference images in the manifest's order.
        category: kind of edit.
        answer: of a question, which no manifest holds so far.
        mask: a video as long as the target (an image for a pair of images), white where the edit may show.
        caption: what the target shows.
        location: the row's place for messages, such as "pairs.csv, line 7".
    """

    id: str
    source: VideoFile
    target: VideoFile | None
    instruction: str
    references: tuple[ImageFile | EncodedImage, ...] = ()
    category: str | None = None
    answer: str = ""
    mask: VideoFile | None = None
    caption: str = ""
    location: str


def read_manifest(path: str | Path, *, base: Path | None = None, require_target: bool = True) -> list[EditRecord]:
    """Read and check a manifest.

    Several reference images are a list in JSONL and parquet, and separated by `|` in CSV.

    Args:
        path: CSV, JSONL or parquet.
        base: folder that its paths are relative to; by default the manifest's own.
        require_target: whether every row needs a target; inference does not.

    Raises:
        ManifestError: one message with the first five problems, their lines, and the number of all problems.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        expected = ", ".join(READERS)
        raise ManifestError(f"The manifest {path} has an unknown suffix", code="unknown-format", expected=expected)
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        fix = "give the path of a manifest file"
        raise ManifestError(f"The manifest {path} {state}", code="missing-file", fix=fix)
    folder = path.parent if base is None else Path(base)
    if not folder.is_dir():
        problem = f"The base folder {folder} of the manifest {path} does not exist"
        raise ManifestError(problem, code="missing-file", fix="give another base")

    required = ("src_video", "tgt_video", "prompt") if require_target else ("src_video", "prompt")
    checker = _Checker(path, _Files(folder), require_target)
    try:
        for number, row in enumerate(reader(path, required), start=1):
            checker.add(number, row)
    except UnicodeDecodeError as error:
        problem = f"The manifest {path} is not UTF-8 text ({error.reason})"
        raise ManifestError(problem, code="unreadable-file", fix="save it as UTF-8") from None
    return checker.finish()


class _Checker:
    """Turns rows into records and collects problems: the first few, and the number of all."""

    def __init__(self, path: Path, files: _Files, require_target: bool) -> None:
        self.path, self.files, self.require_target = path, files, require_target
        self.records: list[EditRecord] = []
        self.first_seen: dict[str, str] = {}
        self.problems: list[str] = []
        self.count = 0

    def add(self, number: int, row: Row) -> None:
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
            self.records.append(
                EditRecord(
                    id=record_id,
                    source=source,
                    target=target,
                    instruction=instruction,
                    references=references,
                    category=self._text(row, "edited_type"),
                    mask=mask,
                    caption=self._text(row, "caption") or "",
                    location=row.location,
                )
            )

    def finish(self) -> list[EditRecord]:
        if self.count:
            noun = "problem" if self.count == 1 else "problems"
            more = f"; and {self.count - _MAX_PROBLEMS} more" if self.count > _MAX_PROBLEMS else ""
            raise ManifestError(
                f"The manifest {self.path} has {self.count} {noun}: {'; '.join(self.problems)}{more}",
                code="malformed-rows",
                fix=f"correct these rows (paths are relative to {self.files.base})",
            )
        if not self.records:
            expected = "one row for each edit"
            raise ManifestError(
                f"The manifest {self.path} is empty", code="empty-file", got="no rows", expected=expected
            )
        return self.records

    def _id(self, number: int, row: Row) -> str:
        own_id = next((row.cells[k] for k in ("iid", "id") if row.cells.get(k) not in (None, "")), None)
        record_id = f"{self.path.stem}:{number}" if own_id is None else str(own_id).strip()
        if record_id in self.first_seen:
            self._problem(row, f"the id {record_id!r} is already in use ({self.first_seen[record_id]})")
        self.first_seen.setdefault(record_id, row.location)
        return record_id

    def _text(self, row: Row, column: str) -> str | None:
        value = row.cells.get(column)
        if value is not None and not isinstance(value, str):
            self._problem(row, f"{column} is not text but {type(value).__name__}")
            return None
        return (value or "").strip() or None

    def _file(self, row: Row, column: str, *, required: bool) -> VideoFile | None:
        text = self._text(row, column)
        if text is None:
            if required and isinstance(row.cells.get(column), str | None):
                self._problem(row, f"{column} is empty")
            return None
        try:
            return VideoFile(self.files.find(text, column))
        except KiwiError as problem:
            self._problem(row, str(problem))
            return None

    def _references(self, row: Row) -> tuple[ImageFile | EncodedImage, ...]:
        images: list[ImageFile | EncodedImage] = []
        try:
            for text in _as_list(row.cells.get("ref_image"), str, "ref_image"):
                if text.strip():
                    image = self.files.find(text.strip(), "ref_image")
                    self.files.check_image(image)
                    images.append(ImageFile(image))
            for index, data in enumerate(_as_list(row.cells.get("ref_image_bytes"), bytes, "ref_image_bytes")):
                check_image(data, name=f"reference {index + 1}")
                images.append(EncodedImage(data, f"reference {index + 1} of {row.location}"))
        except KiwiError as problem:
            self._problem(row, str(problem))
        return tuple(images)

    def _problem(self, row: Row, text: str) -> None:
        self.count += 1
        if self.count <= _MAX_PROBLEMS:
            self.problems.append(f"{row.location}: {text.rstrip('.')}")


class _Files:
    """Finds files below a base folder by listing each folder once, which keeps manifests of a million rows cheap."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._folders: dict[str, tuple[Path, dict[str, os.DirEntry[str]]]] = {}
        self._images: dict[Path, str | None] = {}

    def find(self, text: str, column: str) -> Path:
        """The path of the file `text`. Raises InputError if it is missing, a folder, or outside the base folder."""
        relative = PurePosixPath(text)
        if relative.is_absolute() or relative.name in ("", "..") or "\\" in text or "\0" in text:
            return self._check(resolve_inside(self.base, text, column), text, column)
        parent = str(relative.parent)
        if parent not in self._folders:
            try:
                folder = resolve_inside(self.base, parent, column)
            except InputError:  # resolve the whole path, so that the message shows the manifest's own text
                return self._check(resolve_inside(self.base, text, column), text, column)
            self._folders[parent] = (folder, _listing(folder))
        folder, entries = self._folders[parent]
        entry = entries.get(relative.name)
        if entry is not None and not entry.is_symlink() and entry.is_file():
            return folder / relative.name
        # A symlink, a folder, a missing file, or a file system that ignores case: rare, so each is checked by itself.
        return self._check(resolve_inside(self.base, text, column), text, column)

    def check_image(self, path: Path) -> None:
        """Raise InputError if a reference is not an image; a file is opened once, however many rows name it."""
        if path not in self._images:
            try:
                check_image(path)
                self._images[path] = None
            except KiwiError as problem:
                self._images[path] = str(problem)
        problem_text = self._images[path]
        if problem_text is not None:
            raise InputError(problem_text, code="unreadable-image")

    def _check(self, resolved: Path, text: str, column: str) -> Path:
        if resolved.is_file():
            return resolved
        state = "is a folder" if resolved.is_dir() else "does not exist"
        raise InputError(f"the {column} {text!r} {state}", code="missing-file")


def _listing(folder: Path) -> dict[str, os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry for entry in entries}
    except OSError:
        return {}  # each file in it is then checked by itself and reported as missing


def _as_list(value: Any, kind: type, column: str) -> list[Any]:
    """A cell that may hold nothing, one value, a list, or (text) a list in JSON."""
    if value is None or value == "":
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            problem, got = f"{column} looks like a JSON list but is not valid JSON", repr(value[:60])
            raise InputError(problem, code="wrong-type", got=got) from None
    values = value if isinstance(value, list) else [value]
    for item in values:
        if not isinstance(item, kind):
            problem, expected = f"{column} holds {type(item).__name__}", f"{kind.__name__} or a list of it"
            raise InputError(problem, code="wrong-type", expected=expected)
    return values
