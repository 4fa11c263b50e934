"""Lightning's Trainer with the precision `auto` and a progress bar of steps, and intervals of optimizer steps."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Any, Literal

import lightning.pytorch as lightning
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomTimeColumn
from rich.progress import ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from kiwi.environment import devices
from kiwi.models.precision import cpu_has_bf16_matmul

log = logging.getLogger(__name__)

Precision = Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true", "32", "bf16", "16"]


class Trainer(lightning.Trainer):
    """Lightning's Trainer, with all its options.

    Args:
        precision: as in Lightning; `auto` is bf16-mixed on an accelerator or a processor with bf16 instructions, and
            32-true elsewhere.
    """

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        precision: Precision | None = None,
        **kwargs: Any,
    ) -> None:
        on_cpu = accelerator == "cpu"
        if precision == "auto":
            precision = "bf16-mixed" if has_bf16(on_cpu=on_cpu) else "32-true"
            log.info("precision: %s", precision)
        elif "bf16" in str(precision) and not has_bf16(on_cpu=on_cpu):
            log.warning(
                "precision %s: this machine has no bf16 instructions, which makes it up to fifty times slower than "
                "float32; --trainer.precision auto selects the faster one",
                precision,
            )
        if kwargs.get("enable_progress_bar") is not False:
            kwargs["callbacks"] = _add_progress_bar(kwargs.get("callbacks"))
        super().__init__(accelerator=accelerator, precision=precision, **kwargs)


class EveryNSteps:
    """An interval of optimizer steps for callbacks that run after every batch, several of which make a step if
    gradients are accumulated.

    Args:
        n: length of the interval; 0 for never.
        step: steps before the first call, as after resuming.
    """

    def __init__(self, n: int, step: int = 0) -> None:
        self.n, self.last = n, step

    def due(self, step: int) -> bool:
        """Whether an interval has ended since the last call, `step` being the optimizer steps so far."""
        is_new, self.last = step != self.last, step
        return is_new and self.n > 0 and step % self.n == 0


class StepProgressBar(RichProgressBar):
    """Lightning's bar of an epoch, headed by the progress of the whole run if that is limited by steps."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock; steps before a checkpoint do not count for the speed."""
        self.started, self.first_step = time.monotonic(), trainer.global_step
        super().on_train_start(trainer, pl_module)

    def configure_columns(self, trainer: lightning.Trainer) -> list[Any]:
        """Lightning's columns; for a run that is limited by steps, with another heading and without the time."""
        columns = super().configure_columns(trainer)
        if trainer.max_steps <= 0:
            return columns
        return [
            _HeadingColumn(self, trainer),
            *(column for column in columns[1:] if not isinstance(column, CustomTimeColumn)),
        ]

    def heading(self, trainer: lightning.Trainer) -> str:
        """Steps done and to do, and the remaining time."""
        step, total = trainer.global_step, trainer.max_steps
        timed = step - self.first_step
        seconds = (time.monotonic() - self.started) / timed * (total - step) if timed else None
        left = "?" if seconds is None else timedelta(seconds=round(seconds))
        return f"step {step}/{total} ({left} left)"


class _HeadingColumn(ProgressColumn):
    def __init__(self, steps: StepProgressBar, trainer: lightning.Trainer) -> None:
        super().__init__(Column(no_wrap=True))
        self.steps, self.trainer = steps, trainer

    def render(self, task: Task) -> Text:
        training = task.description.startswith("Epoch")
        return Text(self.steps.heading(self.trainer) if training else task.description)


def _add_progress_bar(callbacks: list[Callback] | Callback | None) -> list[Callback]:
    callbacks = callbacks if isinstance(callbacks, list) else [] if callbacks is None else [callbacks]
    has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    return callbacks if has_bar else [*callbacks, StepProgressBar()]


def has_bf16(*, on_cpu: bool = False) -> bool:
    """Whether the accelerators, or without any the processor, have instructions for bf16.

    Args:
        on_cpu: ignore accelerators.
    """
    accelerators = [] if on_cpu else devices()
    if accelerators:
        return all(device["bf16"] for device in accelerators)
    return cpu_has_bf16_matmul()
