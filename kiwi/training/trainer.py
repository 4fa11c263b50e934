"""Lightning's Trainer with the precision `auto`, the fastest that this machine trains well in, and a bar of steps."""

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
    """Trains a module; every option is Lightning's.

    Args:
        precision: as Lightning's; `auto` is bf16-mixed on an accelerator or a processor that multiplies bf16, and
            32-true everywhere else.
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
            precision = "bf16-mixed" if multiplies_bf16(on_cpu=on_cpu) else "32-true"
            log.info("precision: %s", precision)
        elif "bf16" in str(precision) and not multiplies_bf16(on_cpu=on_cpu):
            log.warning(
                "precision %s: nothing here multiplies bf16, which can be fifty times slower than float32; "
                "--trainer.precision auto takes what is fast",
                precision,
            )
        if kwargs.get("enable_progress_bar") is not False:
            kwargs["callbacks"] = _with_bar(kwargs.get("callbacks"))
        super().__init__(accelerator=accelerator, precision=precision, **kwargs)  # type: ignore[arg-type]


class StepsBar(RichProgressBar):
    """Lightning's bar of an epoch, headed by how far the whole run is: epochs mean little to one that counts steps."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin to count; steps of before a checkpoint tell nothing of the pace."""
        self.began, self.first = time.monotonic(), trainer.global_step
        super().on_train_start(trainer, pl_module)

    def configure_columns(self, trainer: lightning.Trainer) -> list[Any]:
        """As Lightning's, but for heading and time; of a run that counts epochs just as Lightning's."""
        columns = super().configure_columns(trainer)
        if trainer.max_steps <= 0:
            return columns
        return [_Heading(self, trainer), *(one for one in columns[1:] if not isinstance(one, CustomTimeColumn))]

    def heading(self, trainer: lightning.Trainer) -> str:
        """Steps done and wanted, and the time that the rest will take."""
        done, wanted = trainer.global_step, trainer.max_steps
        here = done - self.first
        left = timedelta(seconds=round((time.monotonic() - self.began) / here * (wanted - done))) if here else "?"
        return f"step {done}/{wanted} ({left} left)"


class _Heading(ProgressColumn):
    def __init__(self, steps: StepsBar, trainer: lightning.Trainer) -> None:
        super().__init__(Column(no_wrap=True))
        self.steps, self.trainer = steps, trainer

    def render(self, task: Task) -> Text:
        training = task.description.startswith("Epoch")
        return Text(self.steps.heading(self.trainer) if training else task.description)


def _with_bar(callbacks: list[Callback] | Callback | None) -> list[Callback]:
    given = callbacks if isinstance(callbacks, list) else [] if callbacks is None else [callbacks]
    return given if any(isinstance(one, ProgressBar) for one in given) else [*given, StepsBar()]


def multiplies_bf16(*, on_cpu: bool = False) -> bool:
    """Whether what a run would use has instructions for bf16: the accelerators, or without any the processor.

    Args:
        on_cpu: leave accelerators out.
    """
    found = [] if on_cpu else devices()
    if found:
        return all(device["bf16"] for device in found)
    return cpu_has_bf16_matmul()
