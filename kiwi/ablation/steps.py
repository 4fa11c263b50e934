"""Steps of a run: commands with typed options, each executed in a child process that dies with the study."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import kiwi.ablation.study  # noqa: F401 (registers the measurements, whose names steps have)
from kiwi.errors import InputError, SpecError
from kiwi.evaluation.measurement import Measurement
from kiwi.media.files import write_json
from kiwi.spec import Spec, from_dict, to_dict

LOG, COMMANDS = "output.log", "commands.json"

PARENT_VARIABLE = "KIWI_PARENT_PROCESS"
"""Environment variable with the id of the process that a child process must not outlive."""

ERROR_LINES = 4
"""Lines of a failed command's output that are shown as its reason, if it printed no error message."""


@dataclass(frozen=True, kw_only=True)
class Step(Spec):
    """A command of a run.

    Args:
        command: what follows `python -m kiwi`; empty for a measurement that reads what training logged.
        options: options of the command as plain data.
        out: folder that it writes to.
        measurement: the measurement that it makes; None for training.
    """

    command: str
    options: dict[str, Any]
    out: Path
    measurement: Measurement | None = None


RunCommand = Callable[[Path, int, Mapping[str, str]], tuple[int, str]]
"""Runs a step of a folder, by number, in an environment; returns the exit code and why it failed."""


def write_steps(folder: Path, steps: Sequence[Step]) -> None:
    """Write the steps of a folder."""
    write_json(folder / COMMANDS, [to_dict(step) for step in steps])


def read_steps(folder: Path) -> list[Step]:
    """The steps of a folder.

    Raises:
        InputError: the file is missing, damaged, or from a release that wrote command lines.
    """
    file = folder / COMMANDS
    try:
        return [from_dict(Step, step) for step in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, SpecError) as problem:
        raise InputError(
            f"cannot read {file}", code="invalid-commands", got=problem,
            fix="rerun `kiwi ablate` with the same study and --out, which writes it anew",
        ) from None  # fmt: skip


def child_environment(**variables: str) -> dict[str, str]:
    """The environment of child processes of this process."""
    return os.environ | {PARENT_VARIABLE: str(os.getpid())} | variables


def run_command(folder: Path, number: int, env: Mapping[str, str]) -> tuple[int, str]:
    """Run a step in a child process and append its output to the folder's log.

    Args:
        folder: holds the steps.
        number: of the step, from 0.
        env: environment of the child process.

    Returns:
        The exit code, and the error message or last lines of the output.
    """
    step = read_steps(folder)[number]
    with (folder / LOG).open("ab") as file:
        file.write(f"$ {step.command} {json.dumps(step.options)}\n".encode())
        file.flush()
        start = file.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "kiwi.ablation.child_process", str(folder), str(number)],
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=dict(env), start_new_session=True,
        )  # fmt: skip
        _children.add(process)
        try:
            code = process.wait()
        finally:
            _children.discard(process)
            _kill(process)
    with (folder / LOG).open("rb") as file:
        file.seek(start)
        output = file.read().decode("utf-8", "replace").replace("\r", "\n").split("\n")
    lines = [line.strip() for line in output if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return code, " ".join(errors[-1:] or lines[-ERROR_LINES:]).removeprefix("error: ")


_children: set[subprocess.Popen[bytes]] = set()
stopping = Event()
"""Set while runs are being stopped, so that a killed command does not count as failed."""


def stop_all() -> None:
    """Kill the commands that are running; their runs resume from their checkpoints."""
    stopping.set()
    for process in list(_children):
        _kill(process)


def reset_stop_flag() -> None:
    """Let runs start again after `stop_all`."""
    stopping.clear()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
