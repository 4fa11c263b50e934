"""Checkpoints to resume from: whole or absent, loaded without unpickling, the newest found again after a kill."""

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
NEEDED = {"state_dict", "global_step", "batches_seen", "pytorch-lightning_version"}
"""What every checkpoint of ours holds."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's reading and writing of checkpoints, made safe.

    The library's own writer goes through the system's temporary folder, which on another file system is a copy that a
    kill can cut in half, and never syncs to disk. Reading never executes what a file holds.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write beside the final name, sync, rename.

        Raises:
            TrainingError: the disk is full or fails; checkpoints written before stay as they are.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as problem:
            kept = newest(path.parent)
            raise TrainingError(
                f"the checkpoint {path} could not be written",
                got=next((str(e) for e in _chain(problem) if isinstance(e, OSError)), str(problem).splitlines()[0]),
                fix="free space, then go on with `--ckpt_path last`" + (f"; last good checkpoint: {kept}" * bool(kept)),
            ) from problem

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Read tensors and plain data.

        Raises:
            CheckpointError: absent or damaged, or anything else is in it, whatever `weights_only` says.
        """
        require_checkpoint(Path(path))
        try:
            found = super().load_checkpoint(path, map_location or "cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as problem:
            raise CheckpointError(
                f"the checkpoint {path} cannot be read",
                got=str(problem).splitlines()[0],
                wanted="tensors and plain data; it is damaged, or holds more than tensors",
                fix=_other(Path(path)),
            ) from problem
        if not isinstance(found, dict) or not found.keys() >= NEEDED:
            raise CheckpointError(f"{path} is no checkpoint of a run", wanted=f"one with {', '.join(sorted(NEEDED))}")
        return found


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint in a run's checkpoints folder; LAST where it is that one.

    A kill may have left half of one (under a hidden name), or LAST pointing at one that is gone.
    """
    return next((path for path in _newest_first(folder) if is_whole(path)), None)


def newest_to_resume(folder: Path) -> Path | None:
    """The checkpoint that a run goes on from, as `newest`; damaged ones that are newer are passed over, with a warning.

    Returns:
        None where there are no checkpoints: the run begins.

    Raises:
        CheckpointError: there are some, and none is whole.
    """
    passed: list[str] = []
    for path in _newest_first(folder):
        if is_whole(path):
            if passed:
                log.warning("passed over in %s, because it is damaged: %s", folder, ", ".join(passed))
            return path
        passed.append(path.name)
    if passed:
        raise CheckpointError(
            f"no checkpoint in {folder} can be read",
            got=f"{', '.join(passed)}, all damaged",
            fix="bring one back from a copy, or delete the run to begin again",
        )
    return None


def is_whole(path: Path) -> bool:
    """Whether all of a checkpoint's bytes are those that were written, by the checksums that torch.save puts beside.

    Reads the whole file once (2 GB/s from memory, half the time of loading it). Cheaper checks do not do: torch loads a
    file in which a tensor's bytes were changed, and says nothing.
    """
    try:
        found = path.stat()
    except OSError:
        return False
    return _agrees_with_checksums(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=64)  # so that a checkpoint is not read again each time that it is asked for on the way to loading it
def _agrees_with_checksums(path: Path, modified: int, size: int) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # whatever garbage makes the reader stumble over
        return False


def _newest_first(folder: Path) -> list[Path]:
    return sorted(checkpoints(folder), key=lambda path: (path.stat().st_mtime_ns, path.name == LAST), reverse=True)


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints under their final names."""
    return sorted(path for path in folder.glob("*.ckpt") if not path.name.startswith(".") and path.is_file())


def remove_halves(folder: Path) -> None:
    """Delete what kills have left half-written."""
    for path in folder.glob(".*.ckpt"):
        log.info("removed %s, which a killed run had left half-written", path)
        path.unlink()


def require_checkpoint(path: Path) -> None:
    """Refuse a checkpoint that is absent or damaged before anything is built on it; see `is_whole`.

    Raises:
        CheckpointError: naming the newest whole one beside it.
    """
    if path.is_file() and is_whole(path):
        return
    kept = newest(path.parent)
    fix = f"take {kept}" if kept else "name a .ckpt file of a run's checkpoints folder, or `last`"
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}", fix=fix)
    raise CheckpointError(f"the checkpoint {path} is damaged or not a checkpoint", fix=fix)


def _other(path: Path) -> str:
    """What to do about a checkpoint that cannot be used."""
    others = [other for other in checkpoints(path.parent) if other.resolve() != path.resolve()]
    return f"take {others[-1]}" if others else "begin again: there is no other beside it"


def _chain(problem: BaseException | None) -> list[BaseException]:
    found = []
    while problem is not None:
        found.append(problem)
        problem = problem.__cause__ or problem.__context__
    return found
