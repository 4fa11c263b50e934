"""The callback that writes metrics.jsonl, which `kiwi.training.run_log` reads."""

import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from kiwi.data.sample import EditBatch
from kiwi.media.journal import Journal
from kiwi.training.modules.base import LitModule
from kiwi.training.run_log import METRICS_FILE
from kiwi.training.trainer import EveryNSteps


class RunLog(L.Callback):
    """Writes the module's metrics to metrics.jsonl, every few steps and after each validation.

    A line holds `step` (optimizer steps done) and metrics by name. It is written before the checkpoint of the same
    step, so that a resumed run has the metrics of all steps before its checkpoint. `read_log` merges the lines of one
    step; if a metric occurs in several, the last value counts. These metrics are added to the module's: `lr`,
    `samples_per_second` over all processes, `memory_gib` (peak of the accelerator, or of the process on CPU), and `mfu`
    (model FLOPs utilization), if the device's peak is known.

    Args:
        every_n_steps: optimizer steps between lines; 0 for the trainer's log_every_n_steps.
        peak_tflops: peak TFLOP/s of one device, for `mfu`; by default from Lightning's table of devices.
    """

    def __init__(self, every_n_steps: int = 0, peak_tflops: float | None = None) -> None:
        self.every_n_steps, self.peak_tflops = every_n_steps, peak_tflops
        self.journal: Journal | None = None
        self.flops: dict[str, int] = {}
        self.counter: _FlopCounter | None = None
        self._restart_counters()

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Look up the device's peak TFLOP/s, and open metrics.jsonl."""
        if self.peak_tflops is None and (peak := get_available_flops(module.device, _compute_dtype(trainer))):
            self.peak_tflops = peak / 1e12
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.journal = Journal(folder / METRICS_FILE)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.interval = EveryNSteps(self.every_n_steps or trainer.log_every_n_steps, trainer.global_step)
        self._restart_counters()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: EditBatch, index: int) -> None:
        """Start counting FLOPs if this is the first batch of its shape."""
        if self.peak_tflops and _batch_shape_key(batch) not in self.flops:
            self.counter = _FlopCounter()
            self.counter.__enter__()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: EditBatch, index: int
    ) -> None:
        """Add up samples and FLOPs; at the interval, write a line."""
        assert isinstance(module, LitModule)
        if self.counter is not None:
            self.counter.__exit__(None, None, None)
            self.flops[_batch_shape_key(batch)], self.counter = self.counter.total, None
        self.samples += len(batch.ids) * trainer.world_size
        self.operations += self.flops.get(_batch_shape_key(batch), 0)
        if not self.interval.due(trainer.global_step):
            return
        seconds = time.perf_counter() - self.started
        system_metrics = {"samples_per_second": self.samples / seconds, **_measure_peak_memory(module.device)}
        if self.peak_tflops:
            system_metrics["mfu"] = self.operations / seconds / (self.peak_tflops * 1e12)
        system_metrics |= module.learned_scalars()
        logged = {f"train/{name}": value for name, value in system_metrics.items()}
        for logger in trainer.loggers:  # Lightning counts from 0 there: its metrics of the first step have step 0
            logger.log_metrics(logged, trainer.global_step - 1)
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        self._write(trainer.global_step, {**module.pop_metrics(), "lr": lr, **system_metrics})
        self._restart_counters()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write the validation metrics, and exclude the time of validation from the training speed."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self._write(trainer.global_step, metrics)
        self._restart_counters()

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Stop writing: metrics of a later `validate` are not part of the run."""
        self.journal = None

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        if self.journal is not None:
            self.journal.append({"step": step, **metrics})

    def _restart_counters(self) -> None:
        self.started, self.samples, self.operations = time.perf_counter(), 0, 0


class _FlopCounter(TorchDispatchMode):
    """Counts FLOPs with PyTorch's table of operators; PyTorch's FlopCounterMode fails on modules without gradients."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def _batch_shape_key(batch: EditBatch) -> str:
    """Key of all that the number of FLOPs of a batch depends on."""
    return f"{batch.task} {len(batch.ids)} {batch.size} {batch.references_BRCHW.shape[1]}"


def _compute_dtype(trainer: L.Trainer) -> torch.dtype:
    return torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32


def _measure_peak_memory(device: torch.device) -> dict[str, float]:
    """Measure `memory_gib`; empty on Windows, which has no such counter for processes."""
    if device.type == "cuda":
        return {"memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    if sys.platform == "win32":
        return {}
    import resource  # exists only on Unix

    units_per_gib = 2**30 if sys.platform == "darwin" else 2**20  # macOS reports bytes, Linux KiB
    return {"memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units_per_gib}
