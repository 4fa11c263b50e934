"""Files: writes that are whole or absent, paths that stay inside their folder, content hashes.

Everything that kiwi puts on disk goes through `atomic_path`, so a killed run never leaves half a file
under a final name; every path that comes out of data goes through `resolve_inside`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from kiwi.errors import InputError, KiwiError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the final name only if the block succeeds.

    The temporary file has the suffix of `path` (writers choose formats by it) and is synced to disk
    before the rename. When the block raises, or writes nothing, `path` is left as it was.

    Raises:
        InputError: the folder does not exist, is no folder or cannot be written to; `path` is a folder.
    """
    path = Path(path)
    folder = path.parent
    if not folder.exists():
        raise InputError(
            f"The folder {folder} for {path.name} does not exist",
            fix=f"create it (mkdir -p {shlex.quote(str(folder))})",
        )
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder, so {path.name} cannot be written there", fix="give another path")
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file", fix="add a file name to the path")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:100]}.", suffix=path.suffix, dir=folder)
    except PermissionError:
        raise InputError(
            f"The folder {folder} cannot be written to", fix="change its permissions or give another"
        ) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; give the result the permissions that an ordinary open() would have.
        temporary.chmod(_permissions(path))
        _sync(temporary)
        temporary.replace(path)
        _sync(folder)  # the rename itself is only durable once the folder is on disk
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; it takes the place of `path`, old contents included, if the block succeeds.

    Raises:
        InputError: the parent folder does not exist, or `path` is a file.
    """
    path = Path(path)
    if not path.parent.is_dir():
        fix = f"create it (mkdir -p {shlex.quote(str(path.parent))})"
        raise InputError(f"The folder {path.parent} for {path.name} does not exist", fix=fix)
    if path.is_file():
        raise InputError(f"{path} is a file, so no folder can be written there", fix="give another path")
    new = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", dir=path.parent))
    old = new.with_name(new.name + ".old")
    try:
        yield new
        new.chmod(0o777 & ~_umask())
        if path.exists():
            path.rename(old)  # two renames: a kill between them leaves the old contents under this name
        new.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


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


def _permissions(path: Path) -> int:
    if path.exists():
        return path.stat().st_mode & 0o777
    return 0o666 & ~_umask()


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
