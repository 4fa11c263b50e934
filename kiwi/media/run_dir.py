"""A folder that a resumable command fills: a record of its settings, written first, says whose it is."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kiwi.errors import InputError
from kiwi.media.files import make_folder, require_name, write_json

LOCK = ".lock"
"""A file by which a folder is held."""


def open_run_dir(record: Path, settings: Mapping[str, Any], what: str, allowed: Collection[str] = ()) -> Path:
    """Make the folder of `record`, or find that it is ours to go on with.

    Args:
        record: JSON file in the folder that holds the settings.
        settings: what may not change between the calls that fill the folder; plain data.
        what: the folder is, with its article, such as "an export".
        allowed: names of files that may be in a folder that has no record yet.

    Returns:
        The folder.

    Raises:
        InputError: it was begun with other settings (those that differ are told), its record cannot be read, or it is
            somebody else's.
    """
    folder, now = record.parent, json.loads(json.dumps(settings))
    require_name(folder)
    if record.exists():
        before = read_record(record)
        if before != now:
            differ = [key for key in now if key not in before or before[key] != now[key]]
            raise InputError(
                f"{folder} holds {what} with other settings",
                got=", ".join(f"{key} {now[key]}" for key in differ) or "none of some that it has",
                wanted=", ".join(f"{key} {before.get(key)}" for key in differ or before.keys() - now.keys()),
                fix="give the same settings to go on with it, or another folder",
            )
    elif folder.exists() and (
        not folder.is_dir() or any(path.name not in (LOCK, *allowed) for path in folder.iterdir())
    ):
        raise InputError(f"{folder} exists and is not {what}", fix="give a new or an empty folder")
    make_folder(folder)
    if not record.exists():
        write_json(record, now)
    return folder


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Hold a folder, so that no other process works in it; one that dies lets go of it.

    Raises:
        InputError: another process holds it, or it cannot be written to.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"another process is working in {folder}",
            code="locked-folder",
            fix="wait for it to finish, or give another folder",
        ) from None
    except OSError as problem:
        raise InputError(
            f"{folder} cannot be written to", code="unwritable-folder", got=problem.strerror, fix="give another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def read_record(record: Path) -> dict[str, Any]:
    """The settings that a record holds. Raises InputError if it cannot be read."""
    try:
        said = json.loads(record.read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            raise ValueError(f"a {type(said).__name__}, not an object")
    except (OSError, ValueError) as problem:
        raise InputError(f"{record} cannot be read", got=problem, fix="give another folder") from None
    return said
