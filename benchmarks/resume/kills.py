"""Kill a training run repeatedly, resume it each time, and compare the result with an uninterrupted run.

    python benchmarks/resume/kills.py --config experiments/real_clips/kills.yaml --data.root CLIPS --out runs/kills

Half of the kills happen while a checkpoint is written, half at a random time between two checkpoints. After each, the
same command resumes the run (`--ckpt_path last`). At the end the losses of all steps, the weights, the optimizer and
the average of the weights must be bitwise equal. Unknown options are passed to `kiwi fit`.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kiwi import console
from kiwi.tables import Table
from kiwi.training.checkpointing import list_checkpoints, newest_checkpoint
from kiwi.training.run_log import read_log

POLL = 0.0005
"""Interval between checks of the checkpoint folder in seconds; a small checkpoint is written in milliseconds."""


def main() -> int:
    """Run the benchmark; returns exit code 1 if the results differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the two runs; must not exist")
    parser.add_argument("--kills", type=int, default=20, help="number of kills (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed for the times of the kills (default: 0)")
    options, fit_options = parser.parse_known_args()
    options.out.mkdir(parents=True)
    rng = random.Random(options.seed)
    reference, killed = options.out / "reference", options.out / "killed"
    interval = _run_reference([*fit_options, "--trainer.default_root_dir", str(reference)], reference / "checkpoints")
    killed_options = [*fit_options, "--trainer.default_root_dir", str(killed)]
    rows = []
    for number in range(1, options.kills + 1):
        kind = "writing" if number % 2 else "between"
        resumed_step = _last_step(killed)
        state = _run_and_kill(killed_options, killed / "checkpoints", kind, interval, rng)
        rows.append((number, kind, state, resumed_step, _last_step(killed)))
        console.note(" ".join(map(str, rows[-1])))
    _start(killed_options).wait()
    console.table(Table("", ("kill", "during", "files left", "resumed from step", "step after the kill"), rows))
    return _compare(reference, killed)


def _start(fit_options: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "kiwi", "fit", *fit_options, "--ckpt_path", "last"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _run_reference(fit_options: list[str], folder: Path) -> float:
    """Train to the end; returns the mean time between two checkpoints in seconds."""
    process, changes = _start(fit_options), []
    for _ in _while_running(process):
        names = {path.name for path in list_checkpoints(folder)}
        if names and (not changes or names != changes[-1][1]):
            changes.append((time.monotonic(), names))
    if process.returncode or len(changes) < 3:
        raise SystemExit(f"the reference run failed or wrote too few checkpoints (exit code {process.returncode})")
    return (changes[-1][0] - changes[0][0]) / (len(changes) - 1)


def _run_and_kill(fit_options: list[str], folder: Path, kind: str, interval: float, rng: random.Random) -> str:
    """Start or resume the run and kill it while "writing" or "between" checkpoints; returns what the kill left."""
    partial_before, process = set(_partial_files(folder)), _start(fit_options)
    # Sometimes at the second checkpoint after a start, so that the run makes progress.
    for _ in range(rng.choice((1, 1, 2))):
        last_change = _modified_at(folder)
        for _ in _while_running(process):
            if kind == "writing" and any(_size(path) for path in set(_partial_files(folder)) - partial_before):
                break
            if kind == "between" and _modified_at(folder) != last_change:
                break
    if kind == "between":
        time.sleep(rng.uniform(0, interval))
    if process.poll() is not None:
        return f"run had already ended (exit code {process.returncode})"
    process.kill()
    process.wait()
    sizes = [_size(path) for path in _partial_files(folder)]
    return f"partial checkpoint ({max(sizes):,} bytes)" if any(sizes) else "complete checkpoints only"


def _while_running(process: subprocess.Popen[bytes]) -> Iterator[None]:
    while process.poll() is None:
        yield
        time.sleep(POLL)


def _partial_files(folder: Path) -> list[Path]:
    """List the checkpoints that are not yet complete."""
    return list(folder.glob(".*.ckpt"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # renamed in the meantime
        return 0


def _modified_at(folder: Path) -> float:
    """Modification time of the last complete checkpoint; 0 if there is none."""
    try:
        return max((path.stat().st_mtime for path in list_checkpoints(folder)), default=0.0)
    except FileNotFoundError:  # replaced in the meantime
        return _modified_at(folder)


def _load(run: Path) -> dict[str, Any]:
    return torch.load(newest_checkpoint(run / "checkpoints") or "", map_location="cpu", weights_only=True)


def _last_step(run: Path) -> int:
    """Global step of the newest complete checkpoint; 0 if there is none."""
    return 0 if newest_checkpoint(run / "checkpoints") is None else int(_load(run)["global_step"])


def _compare(reference: Path, killed: Path) -> int:
    """Print which parts of the two final states are equal; returns 1 if any differs."""
    a, b = _load(reference), _load(killed)
    losses = [{step: metrics["loss"] for step, metrics in read_log(run).items()} for run in (reference, killed)]
    names = {
        "global step": "global_step",
        "weights": "state_dict",
        "average of the weights": "average",
        "optimizer": "optimizer_states",
        "learning-rate schedule": "lr_schedulers",
        "batches trained on": "batches_seen",
    }
    pairs = {"losses of all steps": tuple(losses), **{name: (a[key], b[key]) for name, key in names.items()}}
    rows = [(name, _count(x), "bitwise equal" if _equal(x, y) else "DIFFERENT") for name, (x, y) in pairs.items()]
    console.table(Table("", ("state", "values", "result"), rows))
    return int(any(result == "DIFFERENT" for *_, result in rows))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def _count(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel()
    if isinstance(value, (dict, list, tuple)):
        return sum(map(_count, value.values() if isinstance(value, dict) else value))
    return 1


if __name__ == "__main__":
    sys.exit(main())
