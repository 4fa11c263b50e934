"""Runs: an arm under a seed, as steps that can be killed and rerun, and a record of how it ended.

OUT/arms/<arm>/seed-<n>/run.json      the arm's label, the seed, and a fingerprint of configuration and measurements
    commands.json                     the steps: commands with their options
    <stage>/                          the run of each stage, as `kiwi fit` leaves it
    sandbox/ bench-<suite>/           the measurements of the last stage's model
    output.log                        output of the commands
    result.json                       all results, once every step is done; a study needs nothing else of a finished run
    failed.json                       why it ended, if it failed
"""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi.ablation.results import collect
from kiwi.ablation.steps import LOG, RunCommand, Step, child_environment, read_steps, run_command, stopping, write_steps
from kiwi.ablation.study import MEASUREMENTS, Arm, Study, fit_options
from kiwi.errors import InputError, KiwiError
from kiwi.experiment import read_experiment
from kiwi.media.files import write_json
from kiwi.media.run_dir import exclusive_lock, open_run_dir, read_record
from kiwi.spec import to_dict

RUN, RESULT, FAILED = "run.json", "result.json", "failed.json"

TERMINATED = (-signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit codes of a command that was terminated, as a cluster does when a job's time is over."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """An arm under a seed.

    Args:
        arm, seed: what is trained.
        folder: holds everything of the run.
        steps: commands in order.
        fingerprint: of experiments, options and measurements, whatever the folder.
    """

    arm: Arm
    seed: int
    folder: Path
    steps: Sequence[Step]
    fingerprint: str

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.arm.label}, seed {self.seed}"

    @property
    def state(self) -> str:
        """done, failed, started or waiting."""
        if (self.folder / RESULT).exists():
            return "done"
        if (self.folder / FAILED).exists():
            return "failed"
        return "started" if (self.folder / RUN).exists() else "waiting"

    @property
    def model(self) -> Path:
        """Folder of the trained model."""
        return self.folder / list(self.arm.options)[-1] / "model"

    @property
    def record(self) -> dict[str, Any]:
        """What identifies the run's results."""
        return {"label": self.arm.label, "seed": self.seed, "fingerprint": self.fingerprint}


def runs_of(study: Study, out: Path) -> list[Run]:
    """All runs, seed by seed, so that an interrupted study has complete pairs."""
    return [_run(study, arm, seed, out) for seed in study.seeds for arm in study.arms]


def prepare_run(run: Run) -> None:
    """Make a run's folder, or check that it belongs to the same run, and write its steps.

    Raises:
        InputError: it holds another run, of a study that was changed since.
    """
    open_run_dir(run.folder / RUN, run.record, "a run of an arm", allowed=(RESULT,))
    write_steps(run.folder, run.steps)


def check_result(run: Run) -> None:
    """Raise an InputError if a run's result is from a study that was changed since."""
    recorded = read_record(run.folder / RESULT)
    if differing := [name for name, value in run.record.items() if recorded.get(name) != value]:
        raise InputError(
            f"{run.folder} has the result of another configuration, or of other measurements",
            code="different-run",
            got=", ".join(f"{name} {recorded.get(name)}" for name in differing),
            expected=", ".join(f"{name} {run.record[name]}" for name in differing),
            fix="choose another --out, or delete that folder",
        )


def execute(folder: Path, threads: int = 1, device: str | None = None, run: RunCommand | None = None) -> None:
    """Execute a prepared run, and write result.json or failed.json. Commands resume where they were interrupted.

    Args:
        folder: of the run.
        threads: CPU threads of each command; another number changes the last digits of results.
        device: the accelerator to run on, as CUDA numbers them; all of them unless given.
        run: runs a command; in a child process unless given.

    Raises:
        InputError: another process is executing this run.
    """
    with exclusive_lock(folder):
        _execute(folder, threads, device, run or run_command)


def _execute(folder: Path, threads: int, device: str | None, run: RunCommand) -> None:
    (folder / FAILED).unlink(missing_ok=True)
    variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if device is not None:
        variables["CUDA_VISIBLE_DEVICES"] = device
    start = time.time()
    steps = read_steps(folder)
    for number, step in enumerate(steps):
        if not step.command:
            continue
        code, reason = run(folder, number, child_environment(**variables))
        if code and (stopping.is_set() or code in TERMINATED):
            return  # not a failure: the run resumes when the study does
        if code:
            _write_failure(folder, f"{step.command} {step.out.name}", code, reason)
            return
    try:
        results = collect(steps)
    except KiwiError as problem:
        _write_failure(folder, "collecting results", problem.exit_code, str(problem))
        return
    write_json(folder / RESULT, {**read_record(folder / RUN), **results, "seconds": round(time.time() - start, 1)})


def _write_failure(folder: Path, command: str, code: int, reason: str) -> None:
    write_json(folder / FAILED, {"command": command, "code": code, "why": reason, "log": str(folder / LOG)})


def failure_reason(folder: Path) -> str:
    """Why a run failed, as its record says."""
    try:
        failure: Mapping[str, Any] = json.loads((folder / FAILED).read_text(encoding="utf-8"))
        return f"{failure['command']} ended with {failure['code']}: {failure['why']} (full output: {failure['log']})"
    except (OSError, ValueError, KeyError, TypeError):
        return f"see {folder / LOG}"


def _run(study: Study, arm: Arm, seed: int, out: Path) -> Run:
    folder = out / "arms" / arm.folder / f"seed-{seed}"
    steps = []
    init = first_init = _first_init(study, arm)
    for stage, options in arm.options.items():
        root = {"trainer.default_root_dir": str(folder / stage)}
        training = fit_options(seed, study.stages[stage], {**init, **options, **root}, checkpoint="last")
        steps.append(Step(command="fit", options=to_dict(training), out=folder / stage))
        init = {"model.init": str(folder / stage / "model")}
    last_stage = steps[-1].out
    for measurement in study.measurements:
        where = folder / measurement.name if measurement.command else last_stage
        measuring = measurement.options_for(last_stage / "model", where)
        plain = {} if measuring is None else to_dict(measuring)
        steps.append(Step(command=measurement.command, options=plain, out=where, measurement=measurement))
    commands = {kind.section for kind in MEASUREMENTS if kind.command}
    identity = {
        "stages": [[stage, read_experiment(study.stages[stage]), options] for stage, options in arm.options.items()],
        "start": first_init,
        "measure": {section: settings for section, settings in study.measure.items() if section in commands},
        "seed": seed,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return Run(arm=arm, seed=seed, folder=folder, steps=steps, fingerprint=digest)


def _first_init(study: Study, arm: Arm) -> dict[str, Any]:
    """The initial model of the first trained stage: that of the study's first stage, if that is skipped."""
    first = next(iter(study.stages))
    if first in arm.options:
        return {}
    return {"model.init": study.arms[0].resolved[first].get("model", {}).get("init")}
