"""Append-only JSONL files that survive a kill: what was written stays, a line that was cut short is passed over."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from kiwi.errors import InputError

log = logging.getLogger(__name__)


class Journal:
    """A file of records, one JSON object a line, that several threads of one process may add to.

    Args:
        path: made at the first `append`; its folder must exist.
        durable: wait at each record until it is on the disk, so that not even a crash of the machine loses it.
        convert: applied to the JSON value of each line that is read; makes a record of what another release wrote.
    """

    def __init__(self, path: Path, *, durable: bool = False, convert: Callable[[Any], Any] | None = None) -> None:
        self.path, self.durable, self.convert = path, durable, convert
        self._lock = Lock()

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record. When this returns it survives a kill of the process."""
        line = (json.dumps(record) + "\n").encode()  # ASCII, so that lone surrogates and such are no trouble
        with self._lock, self.path.open("ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = b"\n" + line  # the last process was killed in the middle of a line
            file.write(line)
            file.flush()
            if self.durable:
                os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All records in their order; none if there is no file. Lines that are not JSON objects are logged and skipped.

        Raises:
            InputError: a folder, or a file that may not be read.
        """
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return []
        except OSError as problem:
            raise InputError(f"{self.path} cannot be read", code="unreadable-file", got=problem.strerror) from None
        records = [self._record(line) for line in lines if line.strip()]
        valid = [record for record in records if record is not None]
        if len(valid) < len(records):
            skipped = len(records) - len(valid)
            log.warning("%s: skipped %d of %d lines that are not JSON objects", self.path, skipped, len(records))
        return valid

    def _record(self, line: str) -> dict[str, Any] | None:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return None
        record = record if self.convert is None else self.convert(record)
        return record if isinstance(record, dict) else None
