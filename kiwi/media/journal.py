"""Append-only JSONL files: completed records survive a kill of the process, and truncated lines are skipped."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from kiwi.errors import InputError
from kiwi.media.files import report_write_failure
from kiwi.reading import parse_json, require_file

log = logging.getLogger(__name__)

CHECKSUM = "checksum"
"""Field of a record with the checksum of its other fields."""


def compute_checksum(content: Any) -> str:
    """Compute a checksum of plain data, 16 hexadecimal digits; it guards against edits by hand, not against forgery."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the checksum of its fields as the last one."""
    return {**record, CHECKSUM: compute_checksum(record)}


def is_unchanged(record: dict[str, Any]) -> bool:
    """Remove the checksum from a record, and return whether it is right; True for records of before checksums."""
    checksum = record.pop(CHECKSUM, None)
    return checksum is None or checksum == compute_checksum(record)


class Journal:
    """A file with one JSON object per line, to which several threads of one process may append.

    Args:
        path: the JSONL file; created by the first `append`, in an existing folder.
        durable: sync every record to disk, so that it also survives a crash of the machine.
        convert: converts each parsed JSON value to a record; used to read files written by older versions.
        checked: give every record a checksum, by which `read` notices later edits.
    """

    def __init__(
        self, path: Path, *, durable: bool = False, convert: Callable[[Any], Any] | None = None, checked: bool = False
    ) -> None:
        self.path, self.durable, self.convert, self.checked = path, durable, convert, checked
        self._lock = Lock()

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record, which survives a kill of the process as soon as this returns.

        Raises:
            InputError: the disk is full, or the folder was deleted.
        """
        record = with_checksum(record) if self.checked else record
        line = (json.dumps(record) + "\n").encode()  # ASCII, which can represent lone surrogates too
        with self._lock, report_write_failure(self.path), self.path.open("ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = b"\n" + line  # a killed process left a truncated line
            file.write(line)
            file.flush()
            if self.durable:
                os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Read all records in order; none without a file. Lines that are not JSON objects are skipped with a warning.

        Raises:
            InputError: the file cannot be read, or is a folder; or a record was changed after it was written.
        """
        if not os.path.lexists(self.path):
            return []
        require_file(self.path, what="journal", code="unreadable-file")
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{self.path} cannot be read", code="unreadable-file", got=error.strerror) from None
        numbered = {number: self._parse_line(line) for number, line in enumerate(lines, 1) if line.strip()}
        records = list(numbered.values())
        valid = [record for record in records if record is not None]
        if self.checked:
            # Lines of the previous release have no checksum, and can only precede those that have one.
            checked_lines = [number for number, record in numbered.items() if record and CHECKSUM in record]
            first = min(checked_lines, default=len(lines) + 1)
            unchecked = {number for number in numbered if number > first} - set(checked_lines)
            changed = [
                str(number)
                for number, record in numbered.items()
                if record and (number in unchecked or not is_unchanged(record))
            ]
            if changed:
                raise InputError(
                    f"{self.path} was changed after it was written",
                    code="changed-file",
                    got=f"line{'s' * (len(changed) > 1)} {', '.join(changed[:5])}{', ...' * (len(changed) > 5)}",
                    fix="restore the file, or delete these lines: what they record is then done again",
                )
        if len(valid) < len(records):
            skipped = len(records) - len(valid)
            log.warning("%s: skipped %d of %d lines that are not JSON objects", self.path, skipped, len(records))
        return valid

    def _parse_line(self, line: str) -> dict[str, Any] | None:
        try:
            record = parse_json(line, allow_nan=True)  # metrics may be NaN
        except ValueError:
            return None
        record = record if self.convert is None else self.convert(record)
        return record if isinstance(record, dict) else None
