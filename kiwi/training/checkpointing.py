"""Checkpoints to resume from: whole or absent, loaded without unpickling, the newest found again after a kill."""

from __future__ import annotations

import logging
import pickle
import zipfile
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
    whole = [path for path in checkpoints(folder) if zipfile.is_zipfile(path)]
    return max(whole, key=lambda path: (path.stat().st_mtime_ns, path.name == LAST), default=None)


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints under their final names."""
    return sorted(path for path in folder.glob("*.ckpt") if not path.name.startswith(".") and path.is_file())


def remove_halves(folder: Path) -> None:
    """Delete what kills have left half-written."""
    for path in folder.glob(".*.ckpt"):
        log.info("removed %s, which a killed run had left half-written", path)
        path.unlink()


def require_checkpoint(path: Path) -> None:
    """Refuse a checkpoint that is absent or cut short before anything is built on it.

    Raises:
        CheckpointError: naming the newest whole one beside it.
    """
    if path.is_file() and zipfile.is_zipfile(path):
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
