"""Atomic writes of files and folders, paths that stay inside their folder, content hashes.

kiwi writes everything to disk through `atomic_path` or `atomic_folder`, so that a killed run never leaves an incomplete
file under its final name. Every path that is read from a data file goes through `resolve_inside`.
"""

import ctypes
import errno
import glob
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
from kiwi.reading import require_file

log = logging.getLogger(__name__)

_PREFIX_LENGTH = 40
"""A temporary name begins with up to this many characters of the final name; file systems limit the length of names."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is renamed to `path` only if the block succeeds.

    The temporary file has the suffix of `path`, by which writers choose the format, and is synced to disk before the
    rename. If the block raises, `path` is not changed.

    Raises:
        InputError: the name is invalid, the parent folder does not exist or is not writable, or `path` is a folder.
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
        with report_write_failure(path):
            yield temporary
            # mkstemp makes private files; give the result the permissions that an ordinary open() would have.
            temporary.chmod(_get_permissions(path, 0o666))
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)  # the rename is durable only after a sync of the folder
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: str | Path, list_unexpected_files: Callable[[Path], list[str]]) -> Iterator[Path]:
    """Yield an empty folder beside `path`, which replaces `path` and its contents if the block succeeds.

    Before the rename its files get ordinary permissions and are synced to disk. Arguments and errors are those of
    `require_replaceable`.
    """
    path = require_replaceable(path, list_unexpected_files)
    _warn_about_leftovers(path)
    new = _make_unfinished_folder(path)
    old = new.with_name(new.name + ".old")
    try:
        with report_write_failure(path):
            yield new
            _sync_folder(new, _get_permissions(path, 0o777))
            if not path.exists():
                new.rename(path)
            elif not _swap_names(new, path):
                path.rename(old)  # if the process is killed now, the next write warns about this folder
                new.rename(path)
            _sync(path.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def require_replaceable(path: str | Path, list_unexpected_files: Callable[[Path], list[str]]) -> Path:
    """Check that a folder can be created or replaced, and return its path with symlinks resolved.

    Args:
        path: a new path, an empty folder, or a folder that kiwi wrote, without other files in it.
        list_unexpected_files: function that lists the files of a folder that would be lost if it were replaced.

    Raises:
        InputError: the name is invalid, the parent folder does not exist or is not writable, the path is a file, or the
            folder contains unexpected files (the message lists the first five).
    """
    _require_name(Path(path))
    try:
        path = Path(path).resolve()  # a model folder may be a link to a larger disk; the target is replaced
    except (OSError, RuntimeError) as error:
        raise InputError(f"the path {path} cannot be resolved", code="invalid-path", got=error) from None
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, not a folder", code="not-a-folder", fix="choose another path")
    if path.is_mount():
        raise InputError(f"{path} is a mount point", code="unwritable-folder", fix="choose a folder in it")
    with report_unwritable(path):
        unexpected = list_unexpected_files(path) if path.is_dir() else []
    if unexpected:
        more = f" and {len(unexpected) - 5} more" if len(unexpected) > 5 else ""
        raise InputError(
            f"{path} has files that would be lost if it were replaced",
            code="occupied-folder",
            got=", ".join(unexpected[:5]) + more,
            fix="choose another path, or move these files",
        )
    require_writable(path)
    return path


def require_writable(path: Path) -> None:
    """Raise InputError if `path` cannot be written; tested by writing beside it (disks may be read-only)."""
    _require_name(path)
    _make_unfinished_folder(path).rmdir()


def make_folder(path: str | Path) -> Path:
    """Create a folder and its missing parents, and return its path. Raises InputError if that is impossible."""
    path = Path(path)
    with report_unwritable(path, "created"):
        path.mkdir(parents=True, exist_ok=True)
    return path


def require_no_overlap(target: Path, source: Path) -> None:
    """Raise InputError if an output and an input are the same path, or one is inside the other."""
    output, existing = Path(os.path.realpath(target)), Path(os.path.realpath(source))  # unlike resolve(), never raises
    if existing.exists() and (existing.is_relative_to(output) or output.is_relative_to(existing)):
        relation = "is" if existing == output else "contains" if existing.is_relative_to(output) else "is inside"
        raise InputError(f"the output {target} {relation} the input {source}", code="output-is-input")


def write_text(path: str | Path, text: str) -> None:
    r"""Write UTF-8 text atomically, without converting line ends. Raises the errors of `atomic_path`.

    Lone surrogates, which UTF-8 cannot represent, are written as escapes such as `\udc80` (as JSON writes them).
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_json(path: str | Path, data: Any) -> None:
    """Write `data` as indented JSON, atomically. Raises the errors of `atomic_path`.

    If JSON cannot represent the data (such as NaN), a TypeError or ValueError is raised, and nothing is written.
    """
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def resolve_inside(base: str | Path, relative: str | Path, what: str = "path") -> Path:
    """Return the absolute path of `relative` in the folder `base`, with symlinks resolved.

    The file need not exist. Error messages call the value `what` (such as "src_video").

    Raises:
        InputError: the path is empty or absolute, or leaves `base` through `..` or a symlink.
    """
    text = str(relative)
    if not text.strip() or "\0" in text:
        raise InputError(f"the {what} is not a path", code="invalid-path", got=repr(text), expected=f"a path in {base}")
    # Windows drive and UNC paths are rejected on every system; Path() does not recognise them on Linux.
    if PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith("\\"):
        expected = f"a path relative to {base}"
        raise InputError(f"the {what} {text!r} is absolute", code="path-outside-folder", expected=expected)
    root = Path(base).resolve()
    try:
        resolved = (root / text).resolve()
    except (OSError, RuntimeError) as error:  # a loop of symlinks
        raise InputError(f"the {what} {text!r} cannot be resolved", code="invalid-path", got=error) from None
    if not resolved.is_relative_to(root):
        raise InputError(f"the {what} {text!r} leaves the folder {root}", code="path-outside-folder", got=resolved)
    return resolved


def sha256(path: str | Path) -> str:
    """Compute the SHA-256 of a file's content, as 64 hexadecimal digits. Raises the errors of `require_file`."""
    with require_file(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def report_unwritable(folder: Path, action: str = "written to") -> Iterator[None]:
    """Convert an error of the system in the block to an InputError about the folder."""
    try:
        yield
    except FileNotFoundError:
        fix = f"create it: mkdir -p {shlex.quote(str(folder))}"
        raise InputError(f"the folder {folder} does not exist", code="missing-folder", fix=fix) from None
    except KiwiError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        got = getattr(error, "strerror", None) or error
        raise InputError(f"the folder {folder} cannot be {action}", code="unwritable-folder", got=got) from None


def deleted_folder_error(folder: Path) -> InputError:
    """The error of a folder that is no longer the one that a command is writing to."""
    problem = f"the folder {folder} was deleted, renamed or replaced while a command was writing to it"
    return InputError(problem, code="deleted-folder", fix="rerun the command, and leave its folder alone meanwhile")


@contextmanager
def report_write_failure(path: Path) -> Iterator[None]:
    """Convert an error of writing `path` to a full disk, beyond a quota or limit, or into a deleted folder.

    Writers in other languages raise types of their own, such as SafetensorError, with the number of the system's error
    in the text.

    Raises:
        InputError: writing failed for one of these reasons; other errors are raised as they are.
    """
    try:
        yield
    except KiwiError:
        raise
    except Exception as error:
        if not path.parent.is_dir():
            raise deleted_folder_error(path.parent) from error
        if isinstance(error, UnicodeEncodeError) and not str(path).isprintable():
            problem = f"{path} is not a name that every library can write: it is not valid Unicode"
            raise InputError(problem, code="unusable-path", fix="choose another name") from None
        match = re.search(r"os error (\d+)|code: (\d+), kind", str(error))
        number = error.errno if isinstance(error, OSError) else int(match[1] or match[2]) if match else None
        if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputError(
            f"no space left on the disk to write {path}",
            code="disk-full",
            got=os.strerror(number),
            fix="free some space, or choose a path on another disk, and rerun the command",
        ) from error


def _require_name(path: Path) -> None:
    if path.name in ("", ".."):
        raise InputError(f"the path {str(path)!r} has no file name", code="invalid-path", expected="a path with a name")
    with report_unwritable(path.parent), suppress(FileNotFoundError):
        path.lstat()  # raises if the name is too long for the file system


def _unfinished_prefix(path: Path) -> str:
    return f".{path.name[:_PREFIX_LENGTH]}.unfinished-"


def _make_unfinished_folder(path: Path) -> Path:
    """Make an empty folder beside `path`, named so that a leftover of a killed process can be recognised."""
    with report_unwritable(path.parent):
        return Path(tempfile.mkdtemp(prefix=_unfinished_prefix(path), dir=path.parent))


def _warn_about_leftovers(path: Path) -> None:
    """Warn about unfinished folders beside `path`: a killed process left them, or another one is writing to them."""
    for leftover in sorted(path.parent.glob(glob.escape(_unfinished_prefix(path)) + "*")):
        log.warning("%s was left by an interrupted run: delete it unless another process is writing to it", leftover)


def _sync_folder(folder: Path, mode: int) -> None:
    """Give a folder's contents ordinary permissions (safetensors writes private files) and sync them to disk."""
    umask = _read_umask()
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        _sync(path)
    folder.chmod(mode)
    _sync(folder)


def _swap_names(first: Path, second: Path) -> bool:
    """Swap two paths in one step, so that neither is ever missing if the process is killed.

    Returns False where this is unsupported: on systems other than Linux, and on file systems such as NFS.
    """
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    current_folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(current_folder, os.fsencode(first), current_folder, os.fsencode(second), exchange) == 0)


def _get_permissions(path: Path, default_mode: int) -> int:
    if path.exists():
        return path.stat().st_mode & 0o777
    return default_mode & ~_read_umask()


def _read_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
