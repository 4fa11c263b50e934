"""Append-only JSONL files: completed records survive a kill of the process, and truncated lines are skipped."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from kiwi.errors import InputError
from kiwi.reading import parse_json, require_file

log = logging.getLogger(__name__)


class Journal:
    """A file with one JSON object per line, to which several threads of one process may append.

    Args:
        path: the JSONL file; created by the first `append`, in an existing folder.
        durable: sync every record to disk, so that it also survives a crash of the machine.
        convert: converts each parsed JSON value to a record; used to read files written by older versions.
    """

    def __init__(self, path: Path, *, durable: bool = False, convert: Callable[[Any], Any] | None = None) -> None:
        self.path, self.durable, self.convert = path, durable, convert
        self._lock = Lock()

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record, which survives a kill of the process as soon as this returns."""
        line = (json.dumps(record) + "\n").encode()  # ASCII, which can represent lone surrogates too
        with self._lock, self.path.open("ab+") as file:
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
            InputError: the file cannot be read, or is a folder.
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
        records = [self._parse_line(line) for line in lines if line.strip()]
        valid = [record for record in records if record is not None]
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
