"""Runs: an arm under a seed, as commands that can be killed and given again, and a record of how it ended.

OUT/arms/<arm>/seed-<n>/run.json      what it is: the arm's label, the seed, a fingerprint of all that was asked for
    commands.json                     of `python -m kiwi`
    <stage>/                          the run of each stage, as `kiwi fit` leaves it
    sandbox/ bench-<suite>/           what was measured of the last stage's model
    output.log                        what the commands said
    result.json                       every number, once all is done; a study needs no other file of a finished run
    failed.json                       why it ended, if it did
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from kiwi.ablation.study import Arm, Study, options_of
from kiwi.errors import InputError
from kiwi.experiment import read_experiment
from kiwi.media.files import write_json
from kiwi.media.run_dir import exclusive_lock, open_run_dir, read_record

RUN, RESULT, FAILED, LOG, COMMANDS = "run.json", "result.json", "failed.json", "output.log", "commands.json"

TETHER = "KIWI_TETHERED_TO"
"""Environment variable that names the process with which a run's commands end."""

STOPPED = (-signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit codes of a command that was told to end, as a cluster does when a job's time is over."""

LAST_LINES = 4
"""Of a failed command's output that tell why."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """An arm under a seed.

    Args:
        arm, seed: which.
        folder: where all of it goes.
        commands: of `python -m kiwi`, in order, each without those two words.
        fingerprint: of experiments, options and measurements, wherever their results lie.
    """

    arm: Arm
    seed: int
    folder: Path
    commands: Sequence[Sequence[str]]
    fingerprint: str

    @property
    def state(self) -> str:
        """done, failed, begun or waiting."""
        if (self.folder / RESULT).exists():
            return "done"
        if (self.folder / FAILED).exists():
            return "failed"
        return "begun" if (self.folder / RUN).exists() else "waiting"


def runs_of(study: Study, out: Path) -> list[Run]:
    """All runs, seed by seed, so that a study that is cut off has whole pairs."""
    return [_run(study, arm, seed, out) for seed in study.seeds for arm in study.arms]


def claim_run(run: Run) -> None:
    """Make a run's folder, or find that it is the same run's.

    Raises:
        InputError: it holds another run, of a study that was changed since.
    """
    said = {"label": run.arm.label, "seed": run.seed, "fingerprint": run.fingerprint}
    open_run_dir(run.folder / RUN, said, "a run of an arm", allowed=(RESULT,))
    write_json(run.folder / COMMANDS, [list(one) for one in run.commands])


def require_same(run: Run) -> None:
    """Raises InputError if what was found is of a study that was changed since."""
    said = read_record(run.folder / RESULT)
    own = {"label": run.arm.label, "seed": run.seed, "fingerprint": run.fingerprint}
    if differ := [name for name, value in own.items() if said.get(name) != value]:
        raise InputError(
            f"{run.folder} has the result of another configuration, or of other measurements",
            got=", ".join(f"{name} {said.get(name)}" for name in differ),
            wanted=", ".join(f"{name} {own[name]}" for name in differ),
            fix="give another --out, or remove that folder",
        )


Do = Callable[[Sequence[str], Path, Mapping[str, str]], tuple[int, str]]
"""Runs a command with a log and an environment; its exit code, and its last words."""


def execute(folder: Path, threads: int = 1, device: str | None = None, do: Do | None = None) -> None:
    """Do what a claimed run says, and leave result.json or failed.json; what was done before is not done again.

    Args:
        folder: of the run.
        threads: of the CPU that each command may use: another number moves the last digits of results.
        device: the accelerator to run on, as CUDA numbers them; all of them if not given.
        do: runs a command; in a process of its own if not given.

    Raises:
        InputError: another process is at this run.
    """
    with exclusive_lock(folder):
        _execute(folder, threads, device, do or _do)


def _execute(folder: Path, threads: int, device: str | None, do: Do) -> None:
    from kiwi.ablation.results import collect, stages_of  # imports torch

    (folder / FAILED).unlink(missing_ok=True)
    surroundings = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    surroundings[TETHER] = str(os.getpid())
    if device is not None:
        surroundings["CUDA_VISIBLE_DEVICES"] = device
    began = time.time()
    for command in read_commands(folder):
        code, said = do(command, folder / LOG, surroundings)
        if code and (_STOPPING.is_set() or code in STOPPED):
            return  # not its own fault: it goes on when the study does
        if code:
            what = " ".join([*(command[:1] if command[0] == "fit" else command[:2]), *stages_of([command])])
            write_json(folder / FAILED, {"command": what, "code": code, "why": said, "log": str(folder / LOG)})
            return
    try:
        found = collect(folder, read_commands(folder))
    except InputError as problem:
        write_json(folder / FAILED, {"command": "collect", "code": 2, "why": str(problem), "log": str(folder / LOG)})
        return
    write_json(folder / RESULT, {**read_record(folder / RUN), **found, "seconds": round(time.time() - began, 1)})


def read_commands(folder: Path) -> list[list[str]]:
    """The commands of a claimed run."""
    found: list[list[str]] = json.loads((folder / COMMANDS).read_text(encoding="utf-8"))
    return found


def why_failed(folder: Path) -> str:
    """What a failed run's record says."""
    try:
        said: Mapping[str, Any] = json.loads((folder / FAILED).read_text(encoding="utf-8"))
        return f"{said['command']} ended with {said['code']}: {said['why']} (all of it: {said['log']})"
    except (OSError, ValueError, KeyError, TypeError):
        return f"see {folder / LOG}"


def _run(study: Study, arm: Arm, seed: int, out: Path) -> Run:
    folder = out / "arms" / arm.folder / f"seed-{seed}"
    commands: list[list[str]] = []
    start = _first_init(study, arm)
    init = start
    for stage, options in arm.options.items():
        root = folder / stage
        own = {"trainer.default_root_dir": str(root), "ckpt_path": "last"}
        given = {**init, **options}
        commands.append(["fit", *options_of(seed, study.stages[stage], {**given, **own}).arguments()])
        init = {"model.init": str(root / "model")}
    measure = study.measure
    if measure.sandbox is not None:
        options = {"no-controls": True, **measure.sandbox}
        commands.append(
            ["sandbox", "measure", str(folder / "sandbox"), "--model", init["model.init"], *_words(options)]
        )
    for suite, options in measure.bench.items():
        place = ["--model", init["model.init"], "--out", str(folder / f"bench-{suite}"), "--name", "edited"]
        commands.append(["bench", suite, *place, *_words({"no-gallery": True, **options})])
    asked = {
        "stages": [[stage, read_experiment(study.stages[stage]), options] for stage, options in arm.options.items()],
        "start": start,
        "measure": [measure.sandbox, measure.bench],
        "seed": seed,
    }
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return Run(arm=arm, seed=seed, folder=folder, commands=commands, fingerprint=digest)


def _first_init(study: Study, arm: Arm) -> dict[str, Any]:
    """What the first stage that is trained starts from, if stages before it are left out: what they would have."""
    first = next(iter(study.stages))
    if first in arm.options:
        return {}
    given: Any = study.arms[0].resolved[first] if study.arms else {}
    for name in ("model", "init"):
        given = given.get(name) if isinstance(given, dict) else None
    return {"model.init": given}


def _words(options: Mapping[str, Any]) -> list[str]:
    """Options of a command of ours."""
    words: list[str] = []
    for name, value in options.items():
        if value is False or value is None:
            continue
        words.append(f"--{name}")
        if isinstance(value, list):
            words += [",".join(map(str, value))] if name == "categories" else list(map(str, value))
        elif value is not True:
            words.append(str(value))
    return words


def _do(command: Sequence[str], log: Path, surroundings: Mapping[str, str]) -> tuple[int, str]:
    """Run a command; its exit code, and its last words."""
    with log.open("ab") as file:
        file.write(f"$ python -m kiwi {' '.join(command)}\n".encode())
        file.flush()
        start = file.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "kiwi.ablation.child_process", *command],
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=dict(surroundings),
            start_new_session=True,
        )  # fmt: skip
        _CHILDREN.add(process)
        try:
            code = process.wait()
        finally:
            _CHILDREN.discard(process)
            _kill(process)
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode("utf-8", "replace").replace("\r", "\n").split("\n")
    told = [line.strip() for line in lines if line.strip()]
    errors = [line for line in told if line.startswith("error: ")]
    return code, " ".join(errors[-1:] or told[-LAST_LINES:]).removeprefix("error: ")


_CHILDREN: set[subprocess.Popen[bytes]] = set()
_STOPPING = Event()


def stop_all() -> None:
    """Kill what is running: it goes on from its checkpoints when the study is run again."""
    _STOPPING.set()
    for process in list(_CHILDREN):
        _kill(process)


def start_anew() -> None:
    """Let runs begin, after others were stopped."""
    _STOPPING.clear()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
