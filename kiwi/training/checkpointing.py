"""Checkpoints to resume from: written atomically, loaded without unpickling, checked for damage."""

import logging
import pickle
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from kiwi.errors import CheckpointError, InputError, TrainingError, exception_chain, first_line
from kiwi.media.files import atomic_path

log = logging.getLogger(__name__)

LAST_CHECKPOINT = "last.ckpt"
"""Name of the checkpoint that is replaced at every save."""

REQUIRED_KEYS = {"state_dict", "global_step", "batches_seen", "pytorch-lightning_version"}
"""Keys that every checkpoint of a kiwi run has."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint IO with atomic writes, and without unpickling code from files.

    Lightning's writer never syncs to disk, and goes through the system's temporary folder: on another file system, a
    kill can interrupt the copy from there.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a temporary file in the same folder, sync it to disk, and rename it.

        Raises:
            TrainingError: writing failed, for example on a full disk; earlier checkpoints are not affected.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError, InputError) as error:
            last_good = newest_checkpoint(path.parent)
            got = next((str(e) for e in exception_chain(error) if isinstance(e, OSError)), first_line(error))
            fix = "free space, then resume with `--ckpt_path last`"
            fix += f"; last good checkpoint: {last_good}" if last_good else ""
            problem = f"the checkpoint {path} could not be written"
            raise TrainingError(problem, code="unwritable-file", got=got, fix=fix) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Load tensors and plain data; pickled code is rejected even if `weights_only` is False.

        Raises:
            CheckpointError: the file is missing, damaged, or not a checkpoint of a run.
        """
        require_checkpoint(Path(path))
        try:
            checkpoint = super().load_checkpoint(path, map_location or "cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            # PyTorch's message advises loading with weights_only=False, which runs code, so it is not shown.
            problem = f"the checkpoint {path} does not hold tensors and plain data only"
            got = "damaged data, or pickled objects, which kiwi never loads"
            raise CheckpointError(problem, code="damaged-checkpoint", got=got, fix=_suggest_fix(Path(path))) from error
        if not isinstance(checkpoint, dict) or not checkpoint.keys() >= REQUIRED_KEYS:
            expected = f"a file with the keys {', '.join(sorted(REQUIRED_KEYS))}"
            raise CheckpointError(f"{path} is not a checkpoint of a run", code="not-a-checkpoint", expected=expected)
        return checkpoint


def rewind_to_last_step(checkpoint: dict[str, Any], batches_per_step: int) -> int:
    """Rewind Lightning's counts in a checkpoint to the batches of completed optimizer steps.

    A checkpoint has no accumulated gradients. If it is saved within a step (after an interval of time, or at the end of
    trainer.max_time), the resumed run repeats the batches of this step.

    Returns:
        The number of batches to repeat.
    """
    counts = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    in_steps = counts["current"]["processed"] // batches_per_step * batches_per_step
    repeated: int = counts["current"]["ready"] - in_steps
    if repeated:
        counts["is_last_batch"] = False
        for scope in ("current", "total"):
            counts[scope] = dict.fromkeys(counts[scope], counts[scope]["ready"] - repeated)
    return repeated


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest undamaged checkpoint in a run's checkpoints folder, or None.

    Unfinished files (with hidden names) and links to deleted files, which a killed run may have left, are ignored.
    """
    return next((path for path in _newest_first(folder) if is_undamaged(path)), None)


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The newest undamaged checkpoint, to resume a run from, or None if the folder has none; warns of damaged ones.

    Raises:
        CheckpointError: all of them are damaged.
    """
    damaged: list[str] = []
    for path in _newest_first(folder):
        if is_undamaged(path):
            if damaged:
                log.warning("checkpoints in %s were skipped because they are damaged: %s", folder, ", ".join(damaged))
            return path
        damaged.append(path.name)
    if damaged:
        problem, got = f"no checkpoint in {folder} can be read", f"{', '.join(damaged)}, all damaged"
        fix = "restore one from a backup, or delete the run to start again"
        raise CheckpointError(problem, code="damaged-checkpoint", got=got, fix=fix)
    return None


def is_undamaged(path: Path) -> bool:
    """Whether a checkpoint matches the checksums that torch.save stored in it.

    Reads the whole file once (2 GB/s from memory, half the time of loading it). Cheaper checks are not enough: if
    bytes of a tensor are damaged, torch.load raises no error.
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
    except Exception:  # zipfile can raise any exception on damaged data
        return False


def _newest_first(folder: Path) -> list[Path]:
    paths = list_checkpoints(folder)
    return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name == LAST_CHECKPOINT), reverse=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in a folder, without unfinished files."""
    return sorted(path for path in folder.glob("*.ckpt") if not path.name.startswith(".") and path.is_file())


def remove_unfinished(folder: Path) -> None:
    """Delete checkpoints that a kill left unfinished."""
    for path in folder.glob(".*.ckpt"):
        log.info("removed the unfinished checkpoint %s of a killed run", path)
        path.unlink()


def require_checkpoint(path: Path) -> None:
    """Reject a missing or damaged checkpoint before anything is built; see `is_undamaged`.

    Raises:
        CheckpointError: the checkpoint is missing or damaged; the message names the newest undamaged one in its folder.
    """
    if path.is_file() and is_undamaged(path):
        return
    fix = _suggest_fix(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}", code="missing-file", fix=fix)
    raise CheckpointError(f"{path} is damaged or not a checkpoint", code="damaged-checkpoint", fix=fix)


def _is_loadable(path: Path) -> bool:
    """Whether a checkpoint is undamaged, holds tensors and plain data only, and is one of a run."""
    try:
        return is_undamaged(path) and torch.load(path, "cpu", weights_only=True, mmap=True).keys() >= REQUIRED_KEYS
    except Exception:  # the unpickler can raise any exception
        return False


def _suggest_fix(path: Path) -> str:
    others = (file for file in _newest_first(path.parent) if file.resolve() != path.resolve() and _is_loadable(file))
    other = next(others, None)
    return f"use {other}" if other else "give a .ckpt file of a run's checkpoints folder, or `last`"
