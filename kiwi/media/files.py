"""Files: writes that are whole or absent, paths that stay inside their folder, content hashes.

Everything that kiwi puts on disk goes through `atomic_path` or `atomic_folder`, so a killed run never leaves half
a file under a final name; every path that comes out of data goes through `resolve_inside`.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from kiwi.errors import InputError, KiwiError

log = logging.getLogger(__name__)

UnexpectedFiles = Callable[[Path], list[str]]
"""Says what lies in a folder and is no part of what would replace it, by name: all of a folder of another kind."""

_KEPT = 40
"""Characters of a name that temporary names begin with; more could be too long in bytes."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the final name only if the block succeeds.

    The temporary file has the suffix of `path` (writers choose formats by it) and is synced to disk
    before the rename. When the block raises, or writes nothing, `path` is left as it was.

    Raises:
        InputError: a name that cannot be; the folder does not exist, is no folder or cannot be written to; `path` is a
            folder.
    """
    path = Path(path)
    require_writable(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file", fix="add a file name to the path")
    with _writing_to(path.parent):
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:_KEPT]}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; give the result the permissions that an ordinary open() would have.
        temporary.chmod(_permissions(path, 0o666))
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)  # the rename itself is only durable once the folder is on disk
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: str | Path, unexpected_files: UnexpectedFiles) -> Iterator[Path]:
    """Yield an empty folder beside `path`; it takes the place of `path`, old contents included, if the block succeeds.

    Its files get ordinary permissions whatever their writers gave them, and are synced to disk before the rename.

    Args:
        path: the folder.
        unexpected_files: what of a folder that stands there may not be lost.

    Raises:
        InputError: as `require_replaceable`.
    """
    path = require_replaceable(path, unexpected_files)
    _tell_of_leftovers(path)
    new = _unfinished(path)
    old = new.with_name(new.name + ".old")
    try:
        yield new
        _finish(new, _permissions(path, 0o777))
        if not path.exists():
            new.rename(path)
        elif not _exchange(new, path):
            path.rename(old)  # a kill between the two leaves the contents under this name; the next write tells of it
            new.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def require_replaceable(path: str | Path, unexpected_files: UnexpectedFiles) -> Path:
    """Where a folder can be written as a whole: `path`, symlinks followed.

    Args:
        path: nothing, an empty folder, or a folder of a kind that kiwi writes and with nothing else in it.
        unexpected_files: names what else there is; in a folder of another kind, all of it.

    Raises:
        InputError: a name that cannot be, no parent folder or one that cannot be written to; at `path` there is a file,
            or a folder with something else in it, which nobody meant to lose; the first few names are told.
    """
    given = Path(path)
    require_writable(given)
    try:
        path = given.resolve()  # a model folder may be a link to a larger disk: the link stays, its target is replaced
    except (OSError, RuntimeError) as problem:
        raise InputError(f"the path {given} cannot be followed", got=problem) from None
    require_writable(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, so no folder can be written there", fix="give another path")
    if path.is_mount():
        raise InputError(f"{path} is where a disk is mounted and cannot be replaced", fix="give a folder in it")
    with _writing_to(path):
        held = unexpected_files(path) if path.is_dir() else []
    if held:
        raise InputError(
            f"{path} holds other things than what would replace it",
            got=", ".join(held[:5]) + (f" and {len(held) - 5} more" if len(held) > 5 else ""),
            wanted="a new path, an empty folder, or a folder of the kind that is written with nothing else in it",
            fix="give another path, or move them elsewhere",
        )
    _unfinished(path).rmdir()  # tried, because permissions say nothing of read-only disks or /proc
    return path


def require_writable(path: Path) -> None:
    """Refuse a path under which nothing can be written, as far as can be told without trying.

    Raises:
        InputError: no name or one that is too long, no parent folder or one that may not be looked into.
    """
    folder = path.parent
    if path.name in ("", ".."):
        raise InputError(f"the path {str(path)!r} does not say a name", wanted="the name of what is written")
    try:
        if not folder.exists():
            raise InputError(
                f"The folder {folder} for {path.name} does not exist",
                fix=f"create it (mkdir -p {shlex.quote(str(folder))})",
            )
        if not folder.is_dir():
            raise InputError(
                f"{folder} is not a folder, so {path.name} cannot be written there", fix="give another path"
            )
    except OSError as problem:  # a folder that may not be looked into
        raise InputError(f"{path} cannot be written", got=problem.strerror, fix="give another path") from None
    require_name(path)


def require_name(path: Path) -> None:
    """Refuse a path that no file can have. Raises InputError."""
    try:
        path.exists()
    except OSError as problem:
        raise InputError(f"{path} cannot be written", got=problem.strerror, fix="give another path") from None


def make_folder(path: str | Path) -> Path:
    """The folder with all above it, made if it is not there.

    Raises:
        InputError: something on the way is a file, or may not be written to.
    """
    path = Path(path)
    with _writing_to(path, "made"):
        path.mkdir(parents=True, exist_ok=True)
    return path


def require_no_overlap(target: Path, source: Path) -> None:
    """Refuse to write a file or folder that is, holds or lies in what is read for it.

    Raises:
        InputError: naming both.
    """
    written, read = Path(os.path.realpath(target)), Path(os.path.realpath(source))  # unlike resolve() it never fails
    if read.exists() and (read.is_relative_to(written) or written.is_relative_to(read)):
        relation = "is" if read == written else "holds" if read.is_relative_to(written) else "lies in"
        raise InputError(f"{target} would be written, but it {relation} {source}, which is read", fix="write elsewhere")


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically, line ends as given. Raises InputError as `atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: str | Path, data: Any) -> None:
    """Write `data` as indented JSON, atomically; NaN and infinity are refused because JSON has neither.

    Raises:
        InputError: as `atomic_path`.
        TypeError, ValueError: data that JSON cannot hold; nothing is written.
    """
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def resolve_inside(base: str | Path, relative: str | Path, what: str = "path") -> Path:
    """The absolute path of `relative` under the folder `base`, with symlinks followed.

    The file need not exist. `what` names the value in the message (such as "src_video").

    Raises:
        InputError: an empty or absolute path, or one that leaves `base` through `..` or a symlink.
    """
    text = str(relative)
    if not text.strip() or "\0" in text:
        raise InputError(f"The {what} is empty or has a NUL character", got=repr(text), wanted=f"a path inside {base}")
    # A Windows drive or UNC path is absolute in meaning on every system; Path() alone would not see it here.
    if PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith("\\"):
        raise InputError(f"The {what} {text!r} is absolute", wanted=f"a path relative to {base}")
    root = Path(base).resolve()
    try:
        resolved = (root / text).resolve()
    except (OSError, RuntimeError) as problem:  # a loop of symlinks
        raise InputError(f"The {what} {text!r} cannot be resolved: {problem}") from None
    if not resolved.is_relative_to(root):
        raise InputError(f"The {what} {text!r} leaves the folder {base}", got=resolved, wanted=f"a path inside {root}")
    return resolved


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's content, as 64 hexadecimal digits.

    Raises:
        InputError: the file is missing or a folder.
    """
    path = require_file(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_file(path: str | Path, error: type[KiwiError] = InputError, what: str = "file") -> Path:
    """`path` as a Path if it is a file; otherwise raises `error` (a kind of KiwiError), naming what is wrong."""
    path = Path(path)
    if not path.exists():
        raise error(f"The {what} {path} does not exist", fix="check the path")
    if path.is_dir():
        raise error(f"{path} is a folder, not a {what}", fix=f"give the path of a {what}")
    return path


@contextmanager
def _writing_to(folder: Path, done: str = "written to") -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise InputError(
            f"The folder {folder} cannot be {done}",
            got=problem.strerror,
            fix="change its permissions or give another",
        ) from None


def _unfinished(path: Path) -> Path:
    """A new empty folder beside `path`, under a name that says what it is should a kill leave it there."""
    with _writing_to(path.parent):
        return Path(tempfile.mkdtemp(prefix=f".{path.name[:_KEPT]}.unfinished-", dir=path.parent))


def _tell_of_leftovers(path: Path) -> None:
    """Say what killed runs left beside `path`. Not deleted: another process may be writing there at this moment."""
    pattern = re.compile(re.escape(f".{path.name[:_KEPT]}.unfinished-") + r"\w{8}(\.old)?")
    with _writing_to(path.parent):
        found = [item for item in path.parent.iterdir() if pattern.fullmatch(item.name)]
    for item in sorted(found):
        log.warning("%s is left from a run that was cut off: delete it unless one is writing there now", item)


def _finish(folder: Path, mode: int) -> None:
    """Ordinary permissions for what is in a folder (writers of weights make private files), and all of it on disk."""
    mask = _umask()
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        _sync(path)
    folder.chmod(mode)
    _sync(folder)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, so that no kill finds either missing; False where the system cannot (not Linux, or
    file systems such as NFS).
    """
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _permissions(path: Path, ordinary: int) -> int:
    if path.exists():
        return path.stat().st_mode & 0o777
    return ordinary & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
