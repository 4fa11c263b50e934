"""Kill a training run again and again, and hold what comes out against the same run unbroken.

    python benchmarks/resume/kills.py --config experiments/real_clips/kills.yaml --data.root CLIPS --out runs/kills

Half of the kills fall inside the writing of a checkpoint, half between two checkpoints, at a random moment. After each,
the same command goes on (`--ckpt_path last`). At the end losses of every step, weights, optimizer and average must be
equal to the bit. What is not known here is given on to `kiwi fit`.
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
from kiwi.training.checkpointing import checkpoints, newest
from kiwi.training.run_log import read_log

POLL = 0.0005
"""Seconds between looks at the checkpoints' folder: a small checkpoint is written in milliseconds."""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, required=True, help="folder of the two runs; must not exist")
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    arguments, fit = options.parse_known_args()
    arguments.out.mkdir(parents=True)
    draw = random.Random(arguments.seed)
    unbroken, broken = arguments.out / "unbroken", arguments.out / "broken"
    between = _unbroken([*fit, "--trainer.default_root_dir", str(unbroken)], unbroken / "checkpoints")
    rows = []
    for number in range(1, arguments.kills + 1):
        kind = "writing" if number % 2 else "between"
        before = _step(broken)
        moment = _kill([*fit, "--trainer.default_root_dir", str(broken)], broken / "checkpoints", kind, between, draw)
        rows.append((number, kind, moment, before, _step(broken)))
        console.note(" ".join(map(str, rows[-1])))
    _run([*fit, "--trainer.default_root_dir", str(broken)]).wait()
    console.table("", ("kill", "where", "left behind", "resumed at step", "whole checkpoint of step"), rows)
    return _compare(unbroken, broken)


def _run(fit: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "kiwi", "fit", *fit, "--ckpt_path", "last"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _unbroken(fit: list[str], folder: Path) -> float:
    """Run to the end; the time between two checkpoints."""
    process, seen = _run(fit), []
    while process.poll() is None:
        names = {path.name for path in checkpoints(folder)}
        if len(names) > 0 and (not seen or names != seen[-1][1]):
            seen.append((time.monotonic(), names))
        time.sleep(POLL)
    if process.returncode or len(seen) < 3:
        raise SystemExit(f"the unbroken run failed or wrote too few checkpoints (exit code {process.returncode})")
    return (seen[-1][0] - seen[0][0]) / (len(seen) - 1)


def _kill(fit: list[str], folder: Path, kind: str, between: float, draw: random.Random) -> str:
    """Start or go on, kill at the moment that was asked for; what lay in the folder then."""
    before, process = set(_halves(folder)), _run(fit)
    # Not always the first checkpoint after a start: the run must get on.
    for _ in range(draw.choice((1, 1, 2))):
        known = _stamp(folder)
        for _ in _while_running(process):
            if kind == "writing" and any(_size(half) for half in set(_halves(folder)) - before):
                break
            if kind == "between" and _stamp(folder) != known:
                break
    if kind == "between":
        time.sleep(draw.uniform(0, between))
    if process.poll() is not None:
        return f"ended by itself ({process.returncode})"
    process.kill()
    process.wait()
    left = [_size(half) for half in _halves(folder)]
    return f"half a checkpoint ({max(left):,} bytes)" if any(left) else "whole checkpoints only"


def _while_running(process: subprocess.Popen[bytes]) -> Iterator[None]:
    while process.poll() is None:
        yield
        time.sleep(POLL)


def _halves(folder: Path) -> list[Path]:
    return list(folder.glob(".*.ckpt"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # written and renamed just now
        return 0


def _stamp(folder: Path) -> float:
    try:
        return max((path.stat().st_mtime for path in checkpoints(folder)), default=0.0)
    except FileNotFoundError:  # replaced just now
        return _stamp(folder)


def _load(run: Path) -> dict[str, Any]:
    return torch.load(newest(run / "checkpoints") or "", map_location="cpu", weights_only=True)


def _step(run: Path) -> int:
    """Optimizer steps in the newest whole checkpoint."""
    return 0 if newest(run / "checkpoints") is None else int(_load(run)["global_step"])


def _compare(unbroken: Path, broken: Path) -> int:
    ours, theirs = _load(unbroken), _load(broken)
    losses = [{step: numbers["loss"] for step, numbers in read_log(run).items()} for run in (unbroken, broken)]
    checks = {
        "steps": (ours["global_step"], theirs["global_step"]),
        "losses of every step": tuple(losses),
        "weights": (ours["state_dict"], theirs["state_dict"]),
        "average of the weights": (ours["average"], theirs["average"]),
        "optimizer": (ours["optimizer_states"], theirs["optimizer_states"]),
        "learning-rate schedule": (ours["lr_schedulers"], theirs["lr_schedulers"]),
        "batches trained on": (ours["batches_seen"], theirs["batches_seen"]),
    }
    rows = [(name, _count(a), "equal to the bit" if _equal(a, b) else "DIFFERENT") for name, (a, b) in checks.items()]
    console.table("", ("unbroken against killed", "numbers", "found"), rows)
    return 0 if all(found != "DIFFERENT" for *_, found in rows) else 1


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
