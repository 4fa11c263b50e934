"""Steps of a run: commands with typed options, each run in a child process that exits when the study is killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import kiwi.ablation.study  # noqa: F401 (registers the measurement classes, which commands.json names)
from kiwi.errors import InputError, SpecError
from kiwi.evaluation.measurement import Measurement
from kiwi.media.files import write_json
from kiwi.reading import read_json
from kiwi.spec import Spec, from_dict, to_dict

LOG_FILE, COMMANDS_FILE = "output.log", "commands.json"

PARENT_VARIABLE = "KIWI_PARENT_PROCESS"
"""Environment variable with the id of the parent process, whose death ends the child process."""

ERROR_LINES = 4
"""Number of output lines that are reported when a command fails without an error message."""


@dataclass(frozen=True, kw_only=True)
class Step(Spec):
    """One command of a run.

    Args:
        command: subcommand of `python -m kiwi`; empty for a measurement that only reads the training log.
        options: options of the command as plain data.
        out: output folder of the command.
        measurement: measurement that the command performs; None for training.
        modules: modules outside kiwi to import first, because the arm's configuration names their specs.
    """

    command: str
    options: dict[str, Any]
    out: Path
    measurement: Measurement | None = None
    modules: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Name of the step in messages, such as "fit stage1" or "measurement bench-openve"."""
        return f"measurement {self.measurement.name}" if self.measurement else f"{self.command} {self.out.name}"


def write_steps(folder: Path, steps: Sequence[Step]) -> None:
    """Write the steps of a run to its commands.json."""
    write_json(folder / COMMANDS_FILE, [to_dict(step) for step in steps])


def read_steps(folder: Path) -> list[Step]:
    """Read the steps of a run from its commands.json.

    Raises:
        InputError: the file is missing, damaged, or in the format of the previous release (command lines).
    """
    file = folder / COMMANDS_FILE
    try:
        return [from_dict(Step, step) for step in read_json(file)]
    except (OSError, ValueError, TypeError, SpecError) as error:
        fix = "rerun `kiwi ablate` with the same study and --out to rewrite it"
        raise InputError(f"cannot read {file}", code="unreadable-file", got=error, fix=fix) from None


def make_child_environment(**variables: str) -> dict[str, str]:
    """Make the environment of a child process: that of this process with more variables and the parent's id."""
    return os.environ | {PARENT_VARIABLE: str(os.getpid())} | variables


def run_step(folder: Path, step_index: int, env: Mapping[str, str]) -> tuple[int, str]:
    """Run a step, counted from 0, in a child process, and append its output to the log in the folder of the run.

    Returns:
        The exit code, and the error message or the last lines of the output.
    """
    step = read_steps(folder)[step_index]
    with (folder / LOG_FILE).open("ab") as file:
        file.write(f"$ {step.command} {json.dumps(step.options)}\n".encode())
        file.flush()
        start = file.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "kiwi.ablation.child_process", str(folder), str(step_index)],
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=dict(env), start_new_session=True,
        )  # fmt: skip
        _child_processes.add(process)
        try:
            exit_code = process.wait()
        finally:
            _child_processes.discard(process)
            _kill(process)
    with (folder / LOG_FILE).open("rb") as file:
        file.seek(start)
        output = file.read().decode("utf-8", "replace").replace("\r", "\n").split("\n")
    lines = [line.strip() for line in output if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return exit_code, " ".join(errors[-1:] or lines[-ERROR_LINES:]).removeprefix("error: ")


_child_processes: set[subprocess.Popen[bytes]] = set()
stop_requested = Event()
"""Set while running commands are killed, so that their runs do not count as failed."""


def stop_all() -> None:
    """Kill all running commands; their runs can be resumed from checkpoints."""
    stop_requested.set()
    for process in list(_child_processes):
        _kill(process)


def reset_stop_flag() -> None:
    """Allow runs to start again after `stop_all`."""
    stop_requested.clear()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
