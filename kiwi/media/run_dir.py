"""The output folder of a resumable command, which records the settings it was started with and accepts no others."""

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kiwi.errors import InputError
from kiwi.media.files import deleted_folder_error, make_folder, report_unwritable, write_json
from kiwi.reading import read_json

LOCK_FILE = ".lock"
"""Name of the lock file in a folder."""


def open_run_dir(record: Path, settings: Mapping[str, Any], kind: str, allowed: Collection[str] = ()) -> Path:
    """Create the folder of a new run, or check that an existing one can be resumed with these settings; return it.

    Args:
        record: JSON file in the folder, for the settings.
        settings: plain data that must not change between runs that write to the folder.
        kind: description of the folder with an article, such as "an export", for messages.
        allowed: names of files that may exist in a folder without a record.

    Raises:
        InputError: the folder was started with different settings (the message lists them), its record cannot be read,
            or it has unexpected files.
    """
    folder, settings = make_folder(record.parent), json.loads(json.dumps(settings))
    if not record.exists():
        require_no_other_files(record, kind, allowed)
        write_json(record, settings)
    elif (recorded := read_record(record)) != settings:
        absent = object()
        differing = [k for k in {**settings, **recorded} if settings.get(k, absent) != recorded.get(k, absent)]
        raise InputError(
            f"{folder} holds {kind} with different settings",
            code="changed-settings",
            got=_format_settings(settings, differing),
            expected=_format_settings(recorded, differing),
            fix="use the same settings to resume it, or choose another folder",
        )
    return folder


def require_no_other_files(record: Path, kind: str, allowed: Collection[str] = ()) -> None:
    """Raise InputError if an existing folder has unexpected files and no record; the arguments are `open_run_dir`'s."""
    folder = record.parent
    with report_unwritable(folder):
        if record.exists() or not folder.exists():
            return
        unexpected = sorted({path.name for path in folder.iterdir()} - {LOCK_FILE, *allowed})
    if unexpected:
        problem, got = f"{folder} exists and is not {kind}", ", ".join(unexpected[:5])
        raise InputError(problem, code="occupied-folder", got=got, fix="choose a new or an empty folder")


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[Callable[[], None]]:
    """Lock a folder against other processes; the lock of a killed process is released.

    Yields:
        A function that raises the InputError of a deleted folder, for long blocks that would otherwise make it anew.

    Raises:
        InputError: another process holds the lock, the folder cannot be written to, or it was deleted, renamed or
            replaced before the end of the block.
    """
    file = folder / LOCK_FILE
    lock = FileLock(file)
    with report_unwritable(folder):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            fix = "wait for it to finish, or choose another folder"
            raise InputError(f"another process is working in {folder}", code="locked-folder", fix=fix) from None
        locked = file.stat()

    def is_locked() -> bool:
        try:
            return os.path.samestat(file.stat(), locked)
        except OSError:
            return False

    def require_lock() -> None:
        if not is_locked():
            raise deleted_folder_error(folder)

    try:
        try:
            yield require_lock
        except Exception as error:
            if is_locked():
                raise
            raise deleted_folder_error(folder) from error
        require_lock()
    finally:
        if is_locked():
            with suppress(OSError):
                file.unlink()
        lock.release()


def read_record(record: Path) -> dict[str, Any]:
    """Read the settings in a record. Raises InputError if it cannot be read."""
    settings = read_json(record, what="record")
    if not isinstance(settings, dict):
        got = f"a JSON {type(settings).__name__}, not an object"
        raise InputError(f"{record} cannot be read", code="unreadable-file", got=got, fix="choose another folder")
    return settings


def _format_settings(settings: Mapping[str, Any], keys: Collection[str]) -> str:
    return ", ".join(f"{key} {settings[key]}" if key in settings else f"no {key}" for key in keys)
