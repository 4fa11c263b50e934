"""Runs: the training and evaluation of one arm with one seed, as steps that can be killed and resumed.

OUT/arms/<arm>/seed-<n>/run.json      label of the arm, seed, and fingerprint of the configuration and measurements
    commands.json                     steps of the run: commands with their options
    <stage>/                          output of `kiwi fit` for each stage
    sandbox/ bench-<suite>/           evaluations of the model of the last stage
    output.log                        output of all commands
    result.json                       all results, written after the last step; enough to continue the study elsewhere
    failed.json                       reason of a failure
"""

import hashlib
import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi.ablation.results import RunResult, collect_results, read_result
from kiwi.ablation.steps import (
    LOG_FILE,
    Step,
    make_child_environment,
    read_steps,
    run_step,
    stop_requested,
    write_steps,
)
from kiwi.ablation.study import MEASUREMENTS, Arm, Study, make_fit_options
from kiwi.checkpoints.folder_config import read_folder_config
from kiwi.errors import InputError, KiwiError
from kiwi.experiment import read_experiment
from kiwi.media.files import write_json
from kiwi.media.journal import with_checksum
from kiwi.media.run_dir import exclusive_lock, open_run_dir, read_record
from kiwi.spec import to_dict
from kiwi.weights.hub import locate_local

RUNS_FOLDER, RUN_FILE, RESULT_FILE, FAILURE_FILE = "arms", "run.json", "result.json", "failed.json"

TERMINATION_CODES = (-signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit codes of a command that received SIGTERM, for example because the time limit of its cluster job was reached."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One arm trained and evaluated with one seed.

    Args:
        arm: arm to train, which is one variant of the configuration.
        seed: seed of the run.
        folder: folder of the run.
        steps: steps in the order of execution.
        fingerprint: hash of experiments, options and measurements, independent of the folder.
    """

    arm: Arm
    seed: int
    folder: Path
    steps: Sequence[Step]
    fingerprint: str

    @property
    def name(self) -> str:
        """Label and seed of the run for messages."""
        return f"{self.arm.label}, seed {self.seed}"

    @property
    def state(self) -> str:
        """State of the run: done, failed, started or waiting."""
        if (self.folder / RESULT_FILE).exists():
            return "done"
        if (self.folder / FAILURE_FILE).exists():
            return "failed"
        return "started" if (self.folder / RUN_FILE).exists() else "waiting"

    @property
    def model(self) -> Path:
        """Folder of the trained model."""
        return self.folder / list(self.arm.options)[-1] / "model"

    @property
    def record(self) -> dict[str, Any]:
        """Label, seed and fingerprint, by which results are matched with runs."""
        return {"label": self.arm.label, "seed": self.seed, "fingerprint": self.fingerprint}


def list_runs(study: Study, out: Path) -> list[Run]:
    """List all runs of a study, seed by seed so that an interrupted study has complete pairs."""
    return [_make_run(study, arm, seed, out) for seed in study.seeds for arm in study.arms]


def check_initial_models(study: Study) -> None:
    """Raise a CheckpointError if the model folder that an arm starts from does not exist or is none."""
    first = next(iter(study.stages))
    for arm in study.arms:
        start = arm if first in arm.options else study.arms[0]
        init = start.resolved[first].get("model", {}).get("init")
        if init is not None and (folder := locate_local(init, f"model folder of {arm.label}", "correct model.init")):
            read_folder_config(folder)


def prepare_run(run: Run) -> None:
    """Create the folder of a run, or check that an existing folder belongs to it, and write its steps.

    Raises:
        InputError: the folder belongs to another run, for example of an earlier version of the study.
    """
    open_run_dir(run.folder / RUN_FILE, run.record, "a run of an arm", allowed=(RESULT_FILE,))
    write_steps(run.folder, run.steps)


def check_result(run: Run) -> RunResult:
    """Read the result of a run. Raises InputError if that fails, or it has another label, seed or fingerprint."""
    result = read_result(run.folder / RESULT_FILE)
    recorded = vars(result)
    if differing := [name for name, value in run.record.items() if recorded[name] != value]:
        got, expected = (", ".join(f"{name} {record[name]}" for name in differing) for record in (recorded, run.record))
        problem = f"{run.folder} has the result of another configuration or of other measurements"
        fix = "choose another --out or delete the folder"
        raise InputError(problem, code="changed-settings", got=got, expected=expected, fix=fix)
    return result


def execute_run(folder: Path, threads: int = 1, device: str | None = None) -> None:
    """Execute or resume the prepared run in a folder, and write result.json or failed.json.

    Args:
        folder: folder of the run.
        threads: number of CPU threads of each command; it affects the last digits of results.
        device: CUDA device id; all devices are visible by default.

    Raises:
        InputError: another process is executing this run.
    """
    variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if device is not None:
        variables["CUDA_VISIBLE_DEVICES"] = device
    with exclusive_lock(folder):
        (folder / FAILURE_FILE).unlink(missing_ok=True)
        start, steps = time.time(), read_steps(folder)
        for index, step in enumerate(steps):
            if not step.command:
                continue
            exit_code, reason = run_step(folder, index, make_child_environment(**variables))
            if exit_code and (stop_requested.is_set() or exit_code in TERMINATION_CODES):
                return  # an interruption is not a failure; rerunning the study resumes the run
            if exit_code:
                _write_failure(folder, step.title, exit_code, reason)
                return
        try:
            results = collect_results(steps)
        except KiwiError as error:
            _write_failure(folder, "collecting results", error.exit_code, str(error))
            return
        seconds = round(time.time() - start, 1)
        record = {**read_record(folder / RUN_FILE), **results, "seconds": seconds}
        write_json(folder / RESULT_FILE, with_checksum(record))


def _write_failure(folder: Path, command: str, exit_code: int, reason: str) -> None:
    failure = {"command": command, "code": exit_code, "why": reason, "log": str(folder / LOG_FILE)}
    write_json(folder / FAILURE_FILE, failure)


def describe_failure(folder: Path) -> str:
    """Describe why a run failed, from its failed.json."""
    try:
        failure = read_record(folder / FAILURE_FILE)
        ending = f"{failure['command']} ended with exit code {failure['code']}: {failure['why']}"
        return f"{ending} (full output: {failure['log']})"
    except (InputError, KeyError):
        return f"see {folder / LOG_FILE}"


def _make_run(study: Study, arm: Arm, seed: int, study_folder: Path) -> Run:
    folder = study_folder / RUNS_FOLDER / arm.folder / f"seed-{seed}"
    steps = []
    init = first_init = _initial_model(study, arm)
    for stage, options in arm.options.items():
        root = {"trainer.default_root_dir": str(folder / stage)}
        training = make_fit_options(seed, study.stages[stage], {**init, **options, **root}, checkpoint="last")
        steps.append(Step(command="fit", options=to_dict(training), out=folder / stage, modules=arm.modules))
        init = {"model.init": str(folder / stage / "model")}
    last_stage = steps[-1].out
    for measurement in study.measurements:
        out = folder / measurement.name if measurement.command else last_stage
        command_options = measurement.make_options(last_stage / "model", out)
        steps.append(
            Step(
                command=measurement.command, options={} if command_options is None else to_dict(command_options),
                out=out, measurement=measurement, modules=arm.modules,
            )
        )  # fmt: skip
    command_sections = {measurement.section for measurement in MEASUREMENTS if measurement.command}
    identity = {
        "stages": [[stage, read_experiment(study.stages[stage]), options] for stage, options in arm.options.items()],
        "start": first_init,
        "measure": {section: settings for section, settings in study.measure.items() if section in command_sections},
        "seed": seed,
    }
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return Run(arm=arm, seed=seed, folder=folder, steps=steps, fingerprint=fingerprint)


def _initial_model(study: Study, arm: Arm) -> dict[str, Any]:
    """The initial weights of an arm that skips the first stage: those with which the base starts that stage."""
    first = next(iter(study.stages))
    if first in arm.options:
        return {}
    return {"model.init": study.arms[0].resolved[first].get("model", {}).get("init")}
