"""Manifests: tables of edits (CSV, JSONL or parquet), which are checked completely before any work starts.

The published columns are `src_video, tgt_video, prompt[, ref_image][, iid][, edited_type]`; RefVIE's parquet holds
encoded images in `ref_image_bytes` instead of paths. kiwi adds two columns: `mask`, the region that the edit may
change, and `caption`, a description of the target. Where a path may stand, so may the encoded media themselves, or a
cell of Hugging Face's image and video columns, `{"bytes": ..., "path": ...}`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

from kiwi.data.clips import EncodedImage, EncodedVideo, ImageFile, VideoFile
from kiwi.data.manifest_rows import READERS, Row, holds_nothing
from kiwi.errors import InputError, KiwiError, ManifestError
from kiwi.media.files import resolve_inside
from kiwi.media.image import EncodedMedia, check_image
from kiwi.reading import MAX_INSTRUCTION, parse_json, require_file, require_text

_MAX_PROBLEMS = 5
"""Maximum number of problems that an error message describes; it gives the number of the others."""
_MAX_PATH_LENGTH = 4096
"""Maximum number of characters of a path or an id; more is damage, or meant to fill the memory."""
_MAX_REFERENCES = 100
"""Maximum number of reference images of a row, all of which are decoded for one sample."""


@dataclass(frozen=True, kw_only=True)
class EditRecord:
    """One row of a manifest: an edit from a source to a target.

    Args:
        id: identifier, unique in the manifest and stable between runs.
        source, target: video or image before and after the edit; the target is None for inference.
        references: reference images, in the manifest's order.
        answer: always empty, since manifests hold no questions.
        mask: video as long as the target (an image for an image pair), white where the edit may change the target.
        caption: description of the target.
        location: position of the row for error messages, such as "pairs.csv, line 7".
    """

    id: str
    source: VideoFile | EncodedVideo
    target: VideoFile | EncodedVideo | None
    instruction: str
    references: tuple[ImageFile | EncodedImage, ...] = ()
    category: str | None = None
    answer: str = ""
    mask: VideoFile | EncodedVideo | None = None
    caption: str = ""
    location: str


def read_manifest(path: str | Path, *, base: Path | None = None, require_target: bool = True) -> list[EditRecord]:
    """Read and check a manifest.

    Several reference images are a list in JSONL and parquet, and separated by `|` in CSV. Words that programs write for
    a missing value, such as "nan", "None" and "N/A", count as empty cells. Embedded media are held in memory.

    Args:
        path: CSV, JSONL or parquet file.
        base: folder that the paths in the manifest are relative to; by default the manifest's own folder.
        require_target: whether every row needs a target; for inference it does not.

    Raises:
        ManifestError: a malformed manifest; the message has the first five problems, their lines, and the total number.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ManifestError(
            f"The manifest {path} has an unknown suffix", code="wrong-suffix", expected=", ".join(READERS)
        )
    require_file(path, ManifestError, what="manifest", code="missing-file")
    folder = path.parent if base is None else Path(base)
    if not folder.is_dir():
        raise ManifestError(f"The base folder {folder} of the manifest {path} does not exist", code="missing-file")
    required = ("src_video", "tgt_video", "prompt") if require_target else ("src_video", "prompt")
    checker = _RowChecker(path, _FileFinder(folder), require_target)
    for number, row in enumerate(reader(path, required), start=1):
        checker.add(number, row)
    return checker.finish()


class _RowChecker:
    """Converts rows to records; describes the first problems and counts all of them."""

    def __init__(self, path: Path, files: _FileFinder, require_target: bool) -> None:
        self.path, self.files, self.require_target = path, files, require_target
        self.records: list[EditRecord] = []
        self.location_by_id: dict[str, str] = {}
        self.media: dict[bytes, EncodedMedia] = {}
        self.problems: list[str] = []
        self.problem_count = 0

    def add(self, number: int, row: Row) -> None:
        if row.problem is not None:
            self._add_problem(row, row.problem)
            return
        count_before = self.problem_count
        record_id = self._read_id(number, row)
        instruction = self._read_text(row, "prompt") or ""
        if holds_nothing(row.cells.get("prompt")):
            self._add_problem(row, f"the prompt is empty{_quote_word(row.cells.get('prompt'))}")
        source = self._read_clip(row, "src_video", required=True)
        target = self._read_clip(row, "tgt_video", required=self.require_target)
        references = self._read_references(row)
        mask = self._read_clip(row, "mask", required=False)
        if self.problem_count == count_before and source is not None:
            self.records.append(
                EditRecord(
                    id=record_id,
                    source=source,
                    target=target,
                    instruction=instruction,
                    references=references,
                    category=self._read_text(row, "edited_type"),
                    mask=mask,
                    caption=self._read_text(row, "caption") or "",
                    location=row.location,
                )
            )

    def finish(self) -> list[EditRecord]:
        if self.problem_count:
            total = "1 problem" if self.problem_count == 1 else f"{self.problem_count} problems"
            more = f"; and {self.problem_count - _MAX_PROBLEMS} more" if self.problem_count > _MAX_PROBLEMS else ""
            message = f"The manifest {self.path} has {total}: {'; '.join(self.problems)}{more}"
            fix = f"correct these rows (paths are relative to {self.files.base})"
            raise ManifestError(message, code="invalid-rows", fix=fix)
        if not self.records:
            raise ManifestError(f"The manifest {self.path} is empty", code="empty-file", expected="a row for each edit")
        return self.records

    def _read_id(self, number: int, row: Row) -> str:
        given_id = next((row.cells[k] for k in ("iid", "id") if not holds_nothing(row.cells.get(k))), None)
        if isinstance(given_id, float | int) and not isinstance(given_id, bool):
            given_id = str(given_id)
        given_id = self._check_text(row, "id", given_id, _MAX_PATH_LENGTH)
        record_id = given_id or f"{self.path.stem}:{number}"
        if record_id in self.location_by_id:
            self._add_problem(row, f"the id {record_id!r} is already in use ({self.location_by_id[record_id]})")
        self.location_by_id.setdefault(record_id, row.location)
        return record_id

    def _read_text(self, row: Row, column: str) -> str | None:
        return self._check_text(row, column, row.cells.get(column), MAX_INSTRUCTION)

    def _check_text(self, row: Row, name: str, value: Any, longest: int) -> str | None:
        if holds_nothing(value):
            return None
        if not isinstance(value, str):
            self._add_problem(row, f"{name} is not text but {type(value).__name__}")
            return None
        try:
            require_text(value, name, longest)
        except InputError as error:
            self._add_problem(row, error.problem)
        return value.strip()

    def _read_clip(self, row: Row, column: str, *, required: bool) -> VideoFile | EncodedVideo | None:
        try:
            value = _unwrap(row.cells.get(column), column)
            if holds_nothing(value):
                if required:
                    self._add_problem(row, f"{column} is empty{_quote_word(value)}")
                return None
            if isinstance(value, bytes):
                return EncodedVideo(self._keep(value, f"the {column} of {row.location}"))
            if not isinstance(value, str):
                raise InputError(f"{column} is not text but {type(value).__name__}", code="wrong-type")
            return VideoFile(self.files.find(value.strip(), column))
        except KiwiError as error:
            self._add_problem(row, str(error))
            return None

    def _read_references(self, row: Row) -> tuple[ImageFile | EncodedImage, ...]:
        images: list[ImageFile | EncodedImage] = []
        try:
            for column, kinds in (("ref_image", (str, bytes)), ("ref_image_bytes", (bytes,))):
                for index, value in enumerate(_parse_list(row.cells.get(column), kinds, column), start=1):
                    if isinstance(value, bytes):
                        check_image(value, name=f"reference {index}")
                        images.append(EncodedImage(self._keep(value, f"reference {index} of {row.location}")))
                    else:
                        image = self.files.find(value.strip(), column)
                        self.files.check_image(image)
                        images.append(ImageFile(image))
        except KiwiError as error:
            self._add_problem(row, str(error))
        return tuple(images)

    def _keep(self, data: bytes, name: str) -> EncodedMedia:
        """Encoded media, of which equal ones are kept once."""
        return self.media.setdefault(data, EncodedMedia(data, name))

    def _add_problem(self, row: Row, text: str) -> None:
        self.problem_count += 1
        if self.problem_count <= _MAX_PROBLEMS:
            self.problems.append(f"{row.location}: {text.rstrip('.')}")


class _FileFinder:
    """Finds files in a base folder; it lists each folder once, which keeps manifests of a million rows cheap."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._folders: dict[str, tuple[Path, dict[str, os.DirEntry[str]]]] = {}
        self._similar_names: dict[str, dict[str, str]] = {}
        self._image_errors: dict[Path, KiwiError | None] = {}

    def find(self, text: str, column: str) -> Path:
        """Return the path of a file. Raises InputError if it is missing, a folder, or outside the base folder."""
        require_text(text, column, _MAX_PATH_LENGTH)
        parent, _, name = text.rpartition("/")
        is_plain = not text.startswith("/") and name not in ("", ".", "..") and "\\" not in text
        if is_plain and (path := self._find_in_listing(parent, name)) is not None:
            return path
        # Symlinks, folders, missing files and file systems that ignore case are rare: each is checked individually.
        resolved = resolve_inside(self.base, text, column)
        if os.path.isfile(resolved):  # noqa: PTH113 (Path.is_file raises for names that are too long)
            return resolved
        if "\\" in text:
            problem, fix = (
                f"the {column} {text!r} has backslashes between folders",
                "write paths with / on every system",
            )
            raise InputError(problem, code="invalid-path", fix=fix)
        if re.match(r"\w+://", text):
            raise InputError(f"the {column} {text!r} is an address", code="invalid-path", fix="download the file")
        exists = os.path.exists(resolved)  # noqa: PTH110 (as above)
        state = "is a folder" if exists and resolved.is_dir() else "is a pipe or device" if exists else "does not exist"
        state += "" if exists else self._suggest(parent, name)
        raise InputError(f"the {column} {text!r} {state}", code="missing-file")

    def _find_in_listing(self, parent: str, name: str) -> Path | None:
        """Return the path of a regular file that is listed in its folder, or None if there is none."""
        if parent not in self._folders:
            try:
                folder = resolve_inside(self.base, parent or ".", "folder")
            except InputError:
                return None
            self._folders[parent] = (folder, _list_folder(folder))
        folder, entries = self._folders[parent]
        entry = entries.get(name)
        is_regular = entry is not None and not entry.is_symlink() and entry.is_file()
        return folder / name if is_regular else None

    def _suggest(self, parent: str, name: str) -> str:
        """Return a hint at a file whose name differs in case, Unicode normalization or spaces only, or no text."""
        _, entries = self._folders.get(parent, (self.base, {}))
        if parent not in self._similar_names:
            self._similar_names[parent] = {_normalize(entry): entry for entry in entries}
        similar = self._similar_names[parent].get(_normalize(name))
        if similar is None:
            return ""
        is_same_text = normalize("NFC", similar) == normalize("NFC", name)
        return f", but there is {similar!r}{' in another Unicode normalization' if is_same_text else ''}"

    def check_image(self, path: Path) -> None:
        """Raise a KiwiError if a reference is not an image; each file is opened once, even if many rows use it."""
        if path not in self._image_errors:
            try:
                check_image(path)
                self._image_errors[path] = None
            except KiwiError as error:
                self._image_errors[path] = error
        if (problem := self._image_errors[path]) is not None:
            raise problem


def _normalize(name: str) -> str:
    return normalize("NFC", name).casefold().strip()


def _list_folder(folder: Path) -> dict[str, os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry for entry in entries}
    except OSError:
        return {}  # each of its files is then reported as missing


def _parse_list(value: Any, kinds: tuple[type, ...], column: str) -> list[Any]:
    """Convert a cell to a list without empty values; it may be one value, a list, or text with a JSON list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except ValueError:
            message = f"{column} looks like a JSON list but is not valid JSON"
            raise InputError(message, code="wrong-type", got=repr(value[:60])) from None
    values = [_unwrap(item, column) for item in (value if isinstance(value, list) else [value])]
    values = [item for item in values if not holds_nothing(item)]
    if len(values) > _MAX_REFERENCES:
        expected = f"at most {_MAX_REFERENCES}"
        raise InputError(f"{column} holds {len(values)} images", code="too-long", expected=expected)
    for item in values:
        if not isinstance(item, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            expected = f"{names} or a list of {names}"
            raise InputError(f"{column} holds {type(item).__name__}", code="wrong-type", expected=expected)
    return values


def _unwrap(value: Any, column: str) -> Any:
    """Return the bytes, or else the path, of a cell of Hugging Face's image and video columns; others as they are."""
    if not isinstance(value, dict):
        return value
    data, path = value.get("bytes"), value.get("path")
    if not value or value.keys() - {"bytes", "path"} or not isinstance(data, bytes | None):
        got = ", ".join(f"{name}: {type(item).__name__}" for name, item in value.items())
        expected = '{"bytes": encoded image or video, "path": text}, of which one may be null (bytes only in parquet)'
        raise InputError(f"{column} holds an unknown structure", code="wrong-type", got=got[:200], expected=expected)
    return data or path


def _quote_word(value: Any) -> str:
    """Describe a cell that counts as empty and yet holds something."""
    return (
        "" if value is None or not str(value).strip() else f" (the cell holds {str(value)[:40]!r}, a word for nothing)"
    )
