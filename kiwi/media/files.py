"""Files: atomic writes, paths that stay inside their folder, content hashes.

Everything that kiwi writes to disk goes through `atomic_path` or `atomic_folder`, so a killed run never leaves half a
file under a final name; every path that comes out of data goes through `resolve_inside`.
"""

from __future__ import annotations

import ctypes
import glob
import hashlib
import json
import logging
import os
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
"""Names the files of a folder that do not belong to what would replace it; all of them in a folder of another kind."""

_PREFIX_LENGTH = 40
"""Characters of the final name at the start of a temporary one; with more it could be too long in bytes."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is renamed to `path` only if the block succeeds.

    The temporary file has the suffix of `path` (writers choose formats by it) and is synced to disk before the rename.
    When the block raises, or writes nothing, `path` is not changed.

    Raises:
        InputError: an impossible name; a folder that does not exist or cannot be written to; `path` is a folder.
    """
    path = Path(path)
    _require_name(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file", code="not-a-file", fix="add a file name to the path")
    with report_unwritable(path.parent):
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:_PREFIX_LENGTH]}.", suffix=path.suffix, dir=path.parent)
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
    """Yield an empty folder beside `path`, which replaces `path` and its contents if the block succeeds.

    Its files get ordinary permissions, whatever their writers gave them, and are synced to disk before the rename.

    Args:
        path: the folder.
        unexpected_files: names the files of an existing folder that must not be lost.

    Raises:
        InputError: as `require_replaceable`.
    """
    path = require_replaceable(path, unexpected_files)
    _warn_of_leftovers(path)
    new = _make_unfinished(path)
    old = new.with_name(new.name + ".old")
    try:
        yield new
        _sync_folder(new, _permissions(path, 0o777))
        if not path.exists():
            new.rename(path)
        elif not _swap_names(new, path):
            path.rename(old)  # after a kill between these two, the next write warns of the folder with this name
            new.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def require_replaceable(path: str | Path, unexpected_files: UnexpectedFiles) -> Path:
    """Check that a folder can be written as a whole, and return its path with symlinks followed.

    Args:
        path: a new path, an empty folder, or a folder of a kind that kiwi writes without other files in it.
        unexpected_files: names the files of the folder that must not be lost.

    Raises:
        InputError: an impossible name; a parent folder that does not exist or cannot be written to; a file; a folder
            with unexpected files, of which the message names the first few.
    """
    _require_name(Path(path))
    try:
        path = Path(path).resolve()  # a model folder may be a link to a larger disk: its target is replaced
    except (OSError, RuntimeError) as problem:
        raise InputError(f"the path {path} cannot be resolved", code="unresolvable-path", got=problem) from None
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, not a folder", code="not-a-folder", fix="choose another path")
    if path.is_mount():
        raise InputError(
            f"{path} is a mount point, which cannot be replaced", code="unwritable-folder", fix="choose a folder in it"
        )
    with report_unwritable(path):
        unexpected = unexpected_files(path) if path.is_dir() else []
    if unexpected:
        more = f" and {len(unexpected) - 5} more" if len(unexpected) > 5 else ""
        raise InputError(
            f"{path} has files that would be lost if it were replaced",
            code="unexpected-files",
            got=", ".join(unexpected[:5]) + more,
            expected="a new path, an empty folder, or a folder of the same kind without other files",
            fix="choose another path, or move these files",
        )
    require_writable(path)
    return path


def require_writable(path: Path) -> None:
    """Check that something can be written at `path`, by writing beside it: permissions do not cover read-only disks.

    Raises:
        InputError: an impossible name; a parent folder that does not exist or cannot be written to.
    """
    _require_name(path)
    _make_unfinished(path).rmdir()


def make_folder(path: str | Path) -> Path:
    """Create the folder and its parents where they do not exist, and return its path.

    Raises:
        InputError: part of the path is a file, or cannot be written to.
    """
    path = Path(path)
    with report_unwritable(path, "created"):
        path.mkdir(parents=True, exist_ok=True)
    return path


def require_no_overlap(target: Path, source: Path) -> None:
    """Refuse to write `target` if it is `source`, contains it or lies in it.

    Raises:
        InputError: naming both.
    """
    written, read = Path(os.path.realpath(target)), Path(os.path.realpath(source))  # unlike resolve() it never fails
    if read.exists() and (read.is_relative_to(written) or written.is_relative_to(read)):
        relation = "is" if read == written else "contains" if read.is_relative_to(written) else "lies in"
        raise InputError(
            f"the output {target} {relation} the input {source}", code="output-is-input", fix="choose another output"
        )


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically, with line ends as given. Raises InputError as `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: str | Path, data: Any) -> None:
    """Write `data` as indented JSON, atomically.

    Raises:
        InputError: as `atomic_path`.
        TypeError, ValueError: data that JSON cannot represent, NaN and infinity included; nothing is written.
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
        raise InputError(f"the {what} is not a path", code="invalid-path", got=repr(text), expected=f"a path in {base}")
    # A Windows drive or UNC path is absolute in meaning on every system; Path() alone would not see it here.
    if PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith("\\"):
        raise InputError(
            f"the {what} {text!r} is absolute", code="path-outside-folder", expected=f"a path relative to {base}"
        )
    root = Path(base).resolve()
    try:
        resolved = (root / text).resolve()
    except (OSError, RuntimeError) as problem:  # a loop of symlinks
        raise InputError(f"the {what} {text!r} cannot be resolved", code="unresolvable-path", got=problem) from None
    if not resolved.is_relative_to(root):
        raise InputError(
            f"the {what} {text!r} leaves the folder {base}",
            code="path-outside-folder",
            got=resolved,
            expected=f"a path inside {root}",
        )
    return resolved


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's content, as 64 hexadecimal digits. Raises InputError as `require_file`."""
    with require_file(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_file(path: str | Path, error: type[KiwiError] = InputError, what: str = "file") -> Path:
    """`path` as a Path if it is a file; otherwise raises `error`, in which `what` says what the file should be."""
    path = Path(path)
    if path.is_dir():
        raise error(f"{path} is a folder, not a {what}", code="not-a-file", fix=f"give the path of a {what}")
    if not path.exists():
        raise error(f"the {what} {path} does not exist", code="missing-file", fix="check the path")
    return path


@contextmanager
def report_unwritable(folder: Path, action: str = "written to") -> Iterator[None]:
    """Raise an OSError of the block as an InputError about the folder."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(
            f"the folder {folder} does not exist",
            code="missing-folder",
            fix=f"create it: mkdir -p {shlex.quote(str(folder))}",
        ) from None
    except OSError as problem:
        raise InputError(
            f"the folder {folder} cannot be {action}",
            code="unwritable-folder",
            got=problem.strerror,
            fix="change its permissions or choose another folder",
        ) from None


def _require_name(path: Path) -> None:
    if path.name in ("", ".."):
        raise InputError(f"the path {str(path)!r} has no file name", code="invalid-path", expected="a path with a name")
    with report_unwritable(path.parent), suppress(FileNotFoundError):
        path.lstat()  # the file system refuses a name that is too long


def _unfinished_prefix(path: Path) -> str:
    return f".{path.name[:_PREFIX_LENGTH]}.unfinished-"


def _make_unfinished(path: Path) -> Path:
    """Make an empty folder beside `path`, with a name that says what it is if a killed process leaves it there."""
    with report_unwritable(path.parent):
        return Path(tempfile.mkdtemp(prefix=_unfinished_prefix(path), dir=path.parent))


def _warn_of_leftovers(path: Path) -> None:
    """Warn of folders that killed processes left beside `path`; another process may still be writing to them."""
    for leftover in sorted(path.parent.glob(glob.escape(_unfinished_prefix(path)) + "*")):
        log.warning("%s was left by an interrupted run: delete it unless another process is writing to it", leftover)


def _sync_folder(folder: Path, mode: int) -> None:
    """Give the contents of a folder ordinary permissions (writers of weights make private files) and sync them."""
    mask = _umask()
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        _sync(path)
    folder.chmod(mode)
    _sync(folder)


def _swap_names(a: Path, b: Path) -> bool:
    """Swap two names in one step, so that a killed process never leaves one missing.

    Returns False where this is not supported (not Linux, or file systems such as NFS).
    """
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    current_folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(current_folder, os.fsencode(a), current_folder, os.fsencode(b), exchange) == 0)


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
