"""Checkpoints to resume from: written atomically, loaded without unpickling, checked for damage."""

from __future__ import annotations

import logging
import pickle
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from kiwi.errors import CheckpointError, TrainingError
from kiwi.media.files import atomic_path

log = logging.getLogger(__name__)

LAST = "last.ckpt"
REQUIRED_KEYS = {"state_dict", "global_step", "batches_seen", "pytorch-lightning_version"}
"""Keys of every checkpoint of kiwi."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's reading and writing of checkpoints, safe against kills and against code in files.

    The library's own writer goes through the system's temporary folder, which on another file system means a copy that
    a kill can cut short, and never syncs to disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write beside the final name, sync, rename.

        Raises:
            TrainingError: the disk is full or fails; earlier checkpoints are not affected.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as problem:
            last_good = newest(path.parent)
            raise TrainingError(
                f"the checkpoint {path} could not be written",
                code="unwritable-checkpoint",
                got=next((str(e) for e in _chain(problem) if isinstance(e, OSError)), str(problem).splitlines()[0]),
                fix="free space, then resume with `--ckpt_path last`"
                + (f"; last good checkpoint: {last_good}" if last_good else ""),
            ) from problem

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Read tensors and plain data; anything else is refused whatever `weights_only` is.

        Raises:
            CheckpointError: missing, damaged, or not a checkpoint of a run.
        """
        require_checkpoint(Path(path))
        try:
            checkpoint = super().load_checkpoint(path, map_location or "cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as problem:
            raise CheckpointError(
                f"the checkpoint {path} cannot be read",
                code="unreadable-checkpoint",
                got=str(problem).splitlines()[0],
                expected="tensors and plain data",
                fix=_suggest_other(Path(path)),
            ) from problem
        if not isinstance(checkpoint, dict) or not checkpoint.keys() >= REQUIRED_KEYS:
            raise CheckpointError(
                f"{path} is not a checkpoint of a run",
                code="not-a-checkpoint",
                expected=f"a file with {', '.join(sorted(REQUIRED_KEYS))}",
            )
        return checkpoint


def newest(folder: Path) -> Path | None:
    """The newest undamaged checkpoint in a run's checkpoints folder; LAST if that is the newest.

    A kill may have left an unfinished file (under a hidden name), or LAST as a link to a deleted file.
    """
    return next((path for path in _newest_first(folder) if is_whole(path)), None)


def newest_to_resume(folder: Path) -> Path | None:
    """The checkpoint to resume a run from, as `newest`; newer ones that are damaged are skipped with a warning.

    Returns:
        None if the folder has no checkpoints.

    Raises:
        CheckpointError: all of them are damaged.
    """
    damaged: list[str] = []
    for path in _newest_first(folder):
        if is_whole(path):
            if damaged:
                log.warning("checkpoints in %s were skipped because they are damaged: %s", folder, ", ".join(damaged))
            return path
        damaged.append(path.name)
    if damaged:
        raise CheckpointError(
            f"no checkpoint in {folder} can be read",
            code="damaged-checkpoint",
            got=f"{', '.join(damaged)}, all damaged",
            fix="restore one from a backup, or delete the run to start again",
        )
    return None


def is_whole(path: Path) -> bool:
    """Whether a checkpoint's bytes match the checksums that torch.save stored.

    Reads the whole file once (2 GB/s from memory, half the time of loading it). Cheaper checks are not enough: torch
    loads a file with changed bytes in a tensor without an error.
    """
    try:
        status = path.stat()
    except OSError:
        return False
    return _matches_checksums(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)  # a checkpoint is checked several times before it is loaded
def _matches_checksums(path: Path, modified: int, size: int) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # garbage can raise anything in the reader
        return False


def _newest_first(folder: Path) -> list[Path]:
    return sorted(checkpoints(folder), key=lambda path: (path.stat().st_mtime_ns, path.name == LAST), reverse=True)


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints, without unfinished files."""
    return sorted(path for path in folder.glob("*.ckpt") if not path.name.startswith(".") and path.is_file())


def remove_unfinished(folder: Path) -> None:
    """Delete checkpoints that a kill left unfinished."""
    for path in folder.glob(".*.ckpt"):
        log.info("removed %s, which a killed run had left unfinished", path)
        path.unlink()


def require_checkpoint(path: Path) -> None:
    """Refuse a missing or damaged checkpoint before anything is built; see `is_whole`.

    Raises:
        CheckpointError: naming the newest undamaged one beside it.
    """
    if path.is_file() and is_whole(path):
        return
    undamaged = newest(path.parent)
    fix = f"use {undamaged}" if undamaged else "give a .ckpt file of a run's checkpoints folder, or `last`"
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}", code="missing-file", fix=fix)
    raise CheckpointError(f"{path} is damaged or not a checkpoint", code="damaged-checkpoint", fix=fix)


def _suggest_other(path: Path) -> str:
    others = [other for other in checkpoints(path.parent) if other.resolve() != path.resolve()]
    return f"use {others[-1]}" if others else "start the run again: there is no other checkpoint beside it"


def _chain(problem: BaseException | None) -> list[BaseException]:
    chain = []
    while problem is not None:
        chain.append(problem)
        problem = problem.__cause__ or problem.__context__
    return chain
