"""`fit` and `validate` as typed calls: for Python users, for studies, and for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.exceptions import SIGTERMException

from kiwi.errors import TrainingError
from kiwi.experiment import to_short_form
from kiwi.options import Options
from kiwi.training.lightning_cli import KiwiCLI, ParseOnlyCLI, run_cli


class TrainingInterrupted(TrainingError):
    """A run that SIGTERM ended, as clusters do when a job's time is over."""

    exit_code = 143
    """128 and the signal's number, as shells have it."""


@dataclass(frozen=True, kw_only=True)
class FitOptions(Options):
    """Train a model, or validate one.

    Args:
        config: experiments (YAML), each over those before it.
        overrides: values over those of the experiments by dotted path, such as `{"trainer.max_steps": 100,
            "model.config.source": "NoSource"}`; every option of `kiwi fit --help`.
        checkpoint: the checkpoint to resume or to validate; "last" for the newest one of the run's folder, which may be
            empty yet.
    """

    config: tuple[Path, ...] = ()
    overrides: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None

    def arguments(self) -> list[str]:
        """The same options as a command line, without the command's name."""
        arguments = [word for file in self.config for word in ("--config", str(file))]
        arguments += [f"--{path}={_format_value(value)}" for path, value in self.overrides.items()]
        return arguments + ([] if self.checkpoint is None else [f"--ckpt_path={self.checkpoint}"])


def fit(options: FitOptions) -> Path:
    """Train, and leave checkpoints and the exported model in the run's folder.

    Returns:
        The run's folder (`trainer.default_root_dir`).

    Raises:
        KiwiError: options that cannot be used, or training that cannot continue.
    """
    return Path(run_command_line(["fit", *options.arguments()]).trainer.default_root_dir)


def validate(options: FitOptions) -> dict[str, float]:
    """Measure a checkpoint, or a trained model, on the validation data; the metrics by name.

    Raises:
        KiwiError: options that cannot be used, or a model that was never trained.
    """
    metrics = run_command_line(["validate", *options.arguments()]).trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items()}


def resolve(options: FitOptions) -> dict[str, Any]:
    """The complete configuration that options stand for, defaults included; nothing is built.

    Returns:
        What config.yaml of the run would hold, in the short form that experiments have (`{type: Name, field: value}`).

    Raises:
        InputError: options that `fit` would refuse.
    """
    cli = run_cli(["fit", *options.arguments()], ParseOnlyCLI)
    configuration: dict[str, Any] = to_short_form(yaml.safe_load(cli.configuration()))
    return configuration


def run_command_line(argv: Sequence[str]) -> KiwiCLI:
    """Run a command line of `fit` or `validate`, whose name is its first word.

    Raises:
        TrainingInterrupted: SIGTERM ended the run.
        KiwiError: options that cannot be used, or training that cannot continue.
    """
    try:
        return run_cli(argv, KiwiCLI)
    except SIGTERMException:
        fix = "rerun the same command with --ckpt_path last to resume from the last checkpoint"
        raise TrainingInterrupted("training was stopped by SIGTERM", code="interrupted", fix=fix) from None


def _format_value(value: Any) -> str:
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
