"""Lightning's Trainer with precision `auto` and a progress bar over optimizer steps."""

import logging
import time
from datetime import timedelta
from typing import Any, Literal

import lightning.pytorch as lightning
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, Timer
from lightning.pytorch.callbacks.progress.rich_progress import CustomTimeColumn
from lightning.pytorch.trainer.states import TrainerFn
from rich.progress import ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from kiwi.environment import devices
from kiwi.errors import InputError
from kiwi.models.device import cpu_has_bf16_matmul
from kiwi.spec import LARGEST

log = logging.getLogger(__name__)

_MINIMUMS = {
    "max_steps": -1, "max_epochs": -1, "min_steps": 0, "min_epochs": 0, "num_sanity_val_steps": -1,
    "log_every_n_steps": 0, "check_val_every_n_epoch": 1, "accumulate_grad_batches": 1, "gradient_clip_val": 0,
    "num_nodes": 1, "reload_dataloaders_every_n_epochs": 0, "limit_train_batches": 0, "limit_val_batches": 0,
    "overfit_batches": 0, "fast_dev_run": 0,
}  # fmt: skip
"""Smallest values of the Trainer's numbers, not all of which Lightning checks; -1 is no limit."""

_MAX_DEVICES = 1024

Precision = Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true", "32", "bf16", "16"]

UNSUPPORTED_CALLBACKS = {
    "GradientAccumulationScheduler": (
        "set trainer.accumulate_grad_batches; train with another number in a run of its own (model.init)"
    ),
    "BatchSizeFinder": "set data.batch_size",
}
"""What to do instead of using these callbacks of Lightning."""


class Trainer(lightning.Trainer):
    """Lightning's Trainer, with all its options.

    Args:
        accelerator: as in Lightning.
        precision: as in Lightning, or `auto`: bf16-mixed on an accelerator or CPU with bf16 instructions, 32-true
            elsewhere.
    """

    def __init__(
        self, *, accelerator: str | Accelerator = "auto", precision: Precision | None = None, **kwargs: Any
    ) -> None:
        _require_ranges(kwargs)
        on_cpu = accelerator == "cpu"
        if precision == "auto":
            precision = "bf16-mixed" if has_bf16(on_cpu=on_cpu) else "32-true"
            log.info("precision: %s", precision)
        elif "bf16" in str(precision) and not has_bf16(on_cpu=on_cpu):
            slow = "precision %s can be fifty times slower than float32 on this machine, which has no bf16 instructions"
            log.warning(slow + "; --trainer.precision auto selects the faster one", precision)
        if kwargs.get("enable_progress_bar") is not False:
            given = kwargs.get("callbacks") or []
            callbacks = given if isinstance(given, list) else [given]
            has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
            kwargs["callbacks"] = callbacks if has_bar else [*callbacks, StepProgressBar()]
        super().__init__(accelerator=accelerator, precision=precision, **kwargs)
        for callback in self.callbacks:
            if (name := type(callback).__name__) in UNSUPPORTED_CALLBACKS:
                problem = f"{name} changes the size of steps, which a resumed run cannot know"
                raise InputError(problem, code="unsupported-option", fix=UNSUPPORTED_CALLBACKS[name])

    def require_equal_steps(self) -> None:
        """Raise an InputError if optimizer steps would accumulate different numbers of batches.

        Lightning also steps after the last batch of an epoch. The epochs of `EditData` consist of whole steps, but
        limit_train_batches, overfit_batches and fast_dev_run can cut them.
        """
        per_step, batches = self.accumulate_grad_batches, self.num_training_batches
        if isinstance(batches, int) and batches % per_step:
            problem = f"trainer.accumulate_grad_batches {per_step} does not divide the {batches} batches of an epoch"
            fix = "change trainer.limit_train_batches, overfit_batches or fast_dev_run to a multiple of it"
            raise InputError(problem, code="unequal-steps", fix=fix)

    def _run_stage(self) -> Any:
        """Run the stage; a resumed `fit` starts with the validation that it was stopped in, which Lightning skips."""
        if self.state.fn == TrainerFn.FITTING and getattr(self.lightning_module, "is_validation_due", False):
            validation = self.fit_loop.epoch_loop.val_loop
            self.validating, validation.restarting = True, False
            validation.run()
            self.training, validation.restarting = True, True
        return super()._run_stage()


def validation_follows(trainer: lightning.Trainer) -> bool:
    """Whether a training batch has just ended and Lightning will validate before the next one."""
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    batches = loop.batch_progress.total
    is_between = fetcher is not None and batches.completed < batches.processed
    return is_between and loop._should_check_val_fx(fetcher)


class EveryNSteps:
    """An interval of optimizer steps, for callbacks that run after every batch.

    With gradient accumulation, several batches share an optimizer step; the interval is due at only one of them.

    Args:
        n: number of optimizer steps between calls; 0 for never.
        step: optimizer steps done so far, such as those before a run was resumed.
    """

    def __init__(self, n: int, step: int = 0) -> None:
        if n < 0:
            expected = "a number of optimizer steps, or 0 for never"
            raise InputError("an interval of steps is negative", code="out-of-range", got=n, expected=expected)
        self.n, self.last = n, step

    def due(self, step: int) -> bool:
        """Whether `step`, the number of optimizer steps so far, is new and ends an interval. Remembers `step`."""
        is_new, self.last = step != self.last, step
        return is_new and self.n > 0 and step % self.n == 0


class StepProgressBar(RichProgressBar):
    """Lightning's progress bar; if `max_steps` is set, it counts the optimizer steps of the whole run.

    Lightning counts the batches of an epoch, and counts on past the last one (11/10) in a run that is resumed there.
    """

    @property
    def total_train_batches(self) -> int | float:
        return self.trainer.max_steps if self.trainer.max_steps > 0 else super().total_train_batches

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock; steps before a resumed checkpoint do not count towards the speed."""
        self.started, self.first_step = time.monotonic(), trainer.global_step
        super().on_train_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Go on from the steps done, where Lightning starts again from 0."""
        super().on_train_epoch_start(trainer, pl_module)
        if trainer.max_steps > 0:
            self._update(self.train_progress_bar_id, trainer.global_step)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the steps done."""
        done = trainer.global_step if trainer.max_steps > 0 else batch_idx + 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, done - 1)

    def configure_columns(self, trainer: lightning.Trainer) -> list[Any]:
        """Lightning's columns; if `max_steps` is set, the remaining time of the run replaces that of the epoch."""
        columns = super().configure_columns(trainer)
        if trainer.max_steps <= 0:
            return columns
        return [_HeadingColumn(self, trainer), *(c for c in columns[1:] if not isinstance(c, CustomTimeColumn))]

    def format_heading(self, trainer: lightning.Trainer) -> str:
        """The estimated remaining time."""
        timed_steps = trainer.global_step - self.first_step
        if not timed_steps:
            return "training (? left)"
        seconds = (time.monotonic() - self.started) / timed_steps * (trainer.max_steps - trainer.global_step)
        return f"training ({timedelta(seconds=round(seconds))} left)"


class _HeadingColumn(ProgressColumn):
    def __init__(self, bar: StepProgressBar, trainer: lightning.Trainer) -> None:
        super().__init__(Column(no_wrap=True))
        self.bar, self.trainer = bar, trainer

    def render(self, task: Task) -> Text:
        is_training = task.description.startswith("Epoch")
        return Text(self.bar.format_heading(self.trainer) if is_training else task.description)


def _require_ranges(options: dict[str, Any]) -> None:
    """Raise an InputError for a number that Lightning would divide by, wait for or ignore."""

    def require(name: str, is_valid: bool, expected: str) -> None:
        if not is_valid:
            raise InputError(
                f"trainer.{name} is out of range", code="out-of-range", got=options[name], expected=expected
            )

    for name, minimum in _MINIMUMS.items():
        if (value := options.get(name)) is not None:
            require(name, minimum <= value <= LARGEST, f"{minimum} to {LARGEST:,}")
    if (interval := options.get("val_check_interval")) is not None and not isinstance(interval, str | dict | timedelta):
        require("val_check_interval", 0 < interval <= LARGEST, f"more than 0, up to {LARGEST:,}")
    devices = options.get("devices")
    devices = int(devices) if isinstance(devices, str) and devices.isdecimal() else devices  # from the command line
    if isinstance(devices, int):
        require("devices", -1 <= devices <= _MAX_DEVICES, f"1 to {_MAX_DEVICES}, or -1 for all")
    if (limit := options.get("max_time")) is not None:
        try:
            seconds = Timer(limit).time_remaining() or 0
        except (OverflowError, TypeError):
            seconds = 0
        require("max_time", seconds > 0, "a positive time, such as 00:12:00:00 for twelve hours")


def has_bf16(*, on_cpu: bool = False) -> bool:
    """Whether all accelerators have bf16 instructions, or, without any or if `on_cpu`, the CPU has them."""
    accelerators = [] if on_cpu else devices()
    return all(device["bf16"] for device in accelerators) if accelerators else cpu_has_bf16_matmul()
