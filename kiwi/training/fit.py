"""`fit` and `validate` as Python functions with typed options, also used by `kiwi ablate` and the command line."""

import re
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.exceptions import SIGTERMException

from kiwi.errors import InputError, TrainingError, exception_chain
from kiwi.experiment import to_short_form
from kiwi.models.config import KiwiConfig
from kiwi.options import Options
from kiwi.spec import to_plain
from kiwi.training.cli_arguments import build_model_specs
from kiwi.training.lightning_cli import CheckingCLI, KiwiCLI, ParseOnlyCLI, run_cli
from kiwi.weights.hub import locate_local


class TrainingInterrupted(TrainingError):
    """`fit` or `validate` was stopped by Ctrl-C, or by SIGTERM, which clusters send at the time limit of a job."""


@dataclass(frozen=True, kw_only=True)
class FitOptions(Options):
    """Options to train or validate a model.

    Args:
        config: experiments (YAML); values of later files replace those of earlier ones.
        overrides: values that replace those of the experiments, by dotted path: `{"trainer.max_steps": 100,
            "model.config.source": "NoSource"}`. `kiwi fit --help` lists all paths.
        checkpoint: the checkpoint to resume or to validate. "last" is the newest one in the run folder; if there is
            none yet, `fit` starts a new run.
    """

    config: tuple[Path, ...] = ()
    overrides: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if invalid := [path for path in self.overrides if not re.fullmatch(r"\w[\w.+-]*", path)]:
            problem, expected = "an override has an invalid path", "a dotted path such as trainer.max_steps"
            raise InputError(problem, code="invalid-option", got=invalid[0], expected=expected)

    def arguments(self) -> list[str]:
        """The options as command-line arguments, without the command's name."""
        arguments = [argument for file in self.config for argument in ("--config", str(file))]
        arguments += [f"--{path}={_format_value(path, value)}" for path, value in self.overrides.items()]
        return arguments + ([] if self.checkpoint is None else [f"--ckpt_path={self.checkpoint}"])


def fit(options: FitOptions) -> Path:
    """Train, and write checkpoints and the exported model to the run folder.

    Returns:
        The run folder (`trainer.default_root_dir`).

    Raises:
        KiwiError: the options are invalid, or training cannot continue.
    """
    return Path(run_command_line(["fit", *options.arguments()]).trainer.default_root_dir)


def validate(options: FitOptions) -> dict[str, float]:
    """Evaluate a checkpoint, or a pretrained model, on the validation data, and return the metrics by name.

    Raises:
        KiwiError: the options are invalid, or the model has untrained weights.
    """
    metrics = run_command_line(["validate", *options.arguments()]).trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items()}


def check(options: FitOptions) -> dict[str, Any]:
    """Resolve options as `resolve` does, and build what `fit` builds, apart from the model, to check all values.

    Pretrained parts must exist, unless they are to be downloaded. Devices and training data are not checked, because
    `fit` may run on another machine.

    Raises:
        KiwiError: the options are invalid.
    """
    configuration = _resolve(options, CheckingCLI)
    for name, spec in build_model_specs(configuration["model"]).items():
        parts = (spec.vae, spec.mllm, spec.dit.base) if isinstance(spec, KiwiConfig) else (spec,)
        for part in parts:
            if path := getattr(part, "path", None):
                place = f"{type(part).__name__} of model.{name}"
                locate_local(path, place, "correct its path", subfolder=getattr(part, "subfolder", ""))
    return configuration


def resolve(options: FitOptions) -> dict[str, Any]:
    """Resolve options to the complete configuration, including defaults, without building anything.

    Returns:
        The content of the run's config.yaml, in the short form of experiments (`{type: Name, field: value}`).

    Raises:
        KiwiError: the options are invalid, or a spec of the model has a value out of range.
    """
    return _resolve(options, ParseOnlyCLI)


def _resolve(options: FitOptions, cli_class: type[ParseOnlyCLI]) -> dict[str, Any]:
    cli = run_cli(["fit", *options.arguments()], cli_class)
    configuration: dict[str, Any] = to_short_form(yaml.safe_load(cli.dump_configuration()))
    build_model_specs(configuration["model"])
    return configuration


def _make_interrupt(command: str, cause: str, number: signal.Signals) -> TrainingInterrupted:
    fix = "with --ckpt_path last to resume from the last checkpoint" if command == "fit" else "to start again"
    problem = f"{command} was stopped by {cause}"
    error = TrainingInterrupted(problem, code="interrupted", fix=f"rerun the same command {fix}")
    error.exit_code = 128 + number  # as in shells
    return error


def run_command_line(argv: Sequence[str]) -> KiwiCLI:
    """Run `fit` or `validate`; `argv` is the name of the command, followed by its options.

    Raises:
        TrainingInterrupted: the command was stopped by Ctrl-C or SIGTERM.
        KiwiError: the options are invalid, or training cannot continue.
    """
    try:
        return run_cli(argv, KiwiCLI)
    except BaseException as error:
        causes = {type(cause) for cause in exception_chain(error)}
        if SIGTERMException in causes:
            raise _make_interrupt(argv[0], "SIGTERM", signal.SIGTERM) from None
        if KeyboardInterrupt not in causes:
            raise
        # Lightning turns an interrupt of a running trainer into SystemExit(1), and ignores all later ones; other
        # libraries may raise an error of their own.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)
        raise _make_interrupt(argv[0], "Ctrl-C", signal.SIGINT) from None


def _format_value(path: str, value: Any) -> str:
    """The text of a value on the command line."""
    if isinstance(value, str):
        return value
    try:
        text = yaml.safe_dump(to_plain(value), default_flow_style=True, width=10**6)
    except yaml.YAMLError:
        expected = "text, numbers, specs, paths, or lists and mappings of these"
        message = f"{path} cannot be overridden by a value of this type"
        raise InputError(message, code="wrong-type", got=repr(value), expected=expected) from None
    return text.removesuffix("\n").removesuffix("\n...")
