"""The callback that writes metrics.jsonl in the run's folder."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path
from typing import IO, Any

import lightning as L
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from kiwi.data.sample import EditBatch
from kiwi.training.modules.base import LitModule, made_a_step
from kiwi.training.run_log import FILE


class RunLog(L.Callback):
    """Writes what the module records, a line every few steps and one a validation, and hands it to the loggers.

    A line holds `step` (optimizer steps done) and numbers by name. It is written before the checkpoint of its step, so
    that a resumed run has the numbers of every step that it does not repeat; of a step that is there twice the later
    line counts (`read_log`). Beside the module's numbers: `lr`, `samples_per_second` (all processes), `memory_gib`
    (the most that was allocated: of the accelerator, else of the process), and `mfu`, the share of the device's peak
    that the operations of a step amount to, where the peak is known.

    Args:
        every_n_steps: steps between lines; 0 for the trainer's log_every_n_steps.
        peak_tflops: of one device, for `mfu`; Lightning's table of devices if none is given.
    """

    def __init__(self, every_n_steps: int = 0, peak_tflops: float | None = None) -> None:
        self.every_n_steps, self.peak_tflops = every_n_steps, peak_tflops
        self.file: IO[str] | None = None
        self.flops: dict[str, int] = {}
        self.counting: _Operations | None = None
        self._restart()

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Open the file where a run before left it."""
        if self.peak_tflops is None and (peak := get_available_flops(module.device, _dtype(trainer))):
            self.peak_tflops = peak / 1e12
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a", encoding="utf-8")
            self.file.write("" if _ends_with_a_line(path) else "\n")  # a kill may have cut the last one

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start the clock."""
        self._restart()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: EditBatch, index: int) -> None:
        """Count the operations of the first batch of each kind."""
        if self.peak_tflops and _kind(batch) not in self.flops:
            self.counting = _Operations()
            self.counting.__enter__()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: EditBatch, index: int
    ) -> None:
        """Take a batch in; at the interval, write."""
        assert isinstance(module, LitModule)
        if self.counting is not None:
            self.counting.__exit__(None, None, None)
            self.flops[_kind(batch)], self.counting = self.counting.total, None
        self.samples += len(batch.ids) * trainer.world_size
        self.done += self.flops.get(_kind(batch), 0)
        every = self.every_n_steps or trainer.log_every_n_steps
        if not made_a_step(trainer, self) or not every or trainer.global_step % every:
            return
        seconds = time.perf_counter() - self.since
        speed = {"samples_per_second": self.samples / seconds, "memory_gib": _memory(module.device)}
        if self.peak_tflops:
            speed["mfu"] = self.done / seconds / (self.peak_tflops * 1e12)
        extra = speed | module.gauges()
        for logger in trainer.loggers:
            logger.log_metrics({f"train/{name}": value for name, value in extra.items()}, trainer.global_step - 1)
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        self._write(trainer.global_step, {**module.recorded(), "lr": lr, **extra})
        self._restart()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write what validation found; its time is not training's."""
        if self.file is not None:
            found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
            self._write(trainer.global_step, found)
        self._restart()

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def _write(self, step: int, numbers: dict[str, float]) -> None:
        if self.file is not None:
            self.file.write(json.dumps({"step": step, **numbers}) + "\n")
            self.file.flush()  # the kernel has it: only a crash of the machine can lose it now

    def _restart(self) -> None:
        self.since, self.samples, self.done = time.perf_counter(), 0, 0


def _ends_with_a_line(path: Path) -> bool:
    """Whether a file's last line is whole, from its last byte alone: the log of a long run is long."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read(1) in (b"\n", b"")


class _Operations(TorchDispatchMode):
    """Counts floating-point operations by torch's table; its own counter fails on parts without gradients."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def _kind(batch: EditBatch) -> str:
    return f"{batch.task} {len(batch.ids)} {batch.size} {batch.references_BRCHW.shape[1]}"


def _dtype(trainer: L.Trainer) -> torch.dtype:
    return torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32


def _memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
