"""What the commands and callbacks ask of every trainable module, and what all of them do alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kiwi.data.sample import EditBatch, EditSample
from kiwi.errors import CheckpointError, TrainingError
from kiwi.spec import to_dict
from kiwi.training.averaging import AveragingSpec
from kiwi.training.optim import OptimSpec

Clips = dict[str, NDArray[np.uint8]]
"""Clips of one sample by name, (F, H, W, 3) each, to be looked at side by side."""


class Look(NamedTuple):
    """What a model made of a sample."""

    sample: EditSample
    clips: Clips
    caption: str


class LitModule(L.LightningModule, ABC):
    """A LightningModule with an optimizer spec, finite numbers only, and checkpoints of what is trained.

    Args:
        optim: optimizer and schedule.
        averaging: of the weights; the average is what is validated, looked at and exported.
        max_pixels: size that the exported model works at; the command line takes it from the data.
        seed: of initial weights and all randomness of training.
    """

    def __init__(self, optim: OptimSpec, averaging: AveragingSpec, max_pixels: int, seed: int) -> None:
        super().__init__()
        self.optim, self.max_pixels, self.seed = optim, max_pixels, seed
        self.average = averaging.build()
        self.validating = ExitStack()
        self.records: dict[str, list[Tensor]] = {}
        self.batch_ids: list[str] = []
        self.batches_seen = 0
        self.shown: dict[tuple[int, int], Look] = {}
        # Frozen parts stay out of checkpoints; `on_load_checkpoint` checks the rest strictly.
        self.strict_loading = False

    def setup(self, stage: str) -> None:
        """Forget what was made before: the weights may be others now."""
        self.shown.clear()

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """Pixels that heights and widths of the data must be multiples of."""

    @property
    def trained(self) -> bool:
        """Whether it was built from trained weights, which can be measured as they are."""
        return False

    @abstractmethod
    def export(self, folder: Path, max_frames: int, *, self_contained: bool) -> None:
        """Write what was learned as a folder that others load."""

    @abstractmethod
    def foreign(self, folder: Path) -> list[str]:
        """What lies in a folder that `export` would not have put there."""

    @abstractmethod
    def preview(self, batch: EditBatch, seed: int) -> Clips:
        """What the model makes of one sample (a batch of one, on the module's device)."""

    def caption(self, batch: EditBatch) -> str:
        """What is written beside a preview of the same batch."""
        return batch.instructions[0]

    @abstractmethod
    def is_saved(self, name: str) -> bool:
        """Whether a tensor of the state dict belongs in checkpoints; frozen parts do not."""

    def record(self, name: str, value: Tensor, *, batch_size: int, prog_bar: bool = False) -> None:
        """Log a number of this batch as `train/NAME`, and keep it for the run's log.

        The value must be the same in all processes.
        """
        self.log(f"train/{name}", value, batch_size=batch_size, prog_bar=prog_bar)
        self.records.setdefault(name, []).append(value.detach())

    def recorded(self) -> dict[str, float]:
        """Means of what was recorded since this was last asked, by name."""
        found = {name: float(torch.stack(values).float().mean()) for name, values in self.records.items()}
        self.records = {}
        return found

    def gauges(self) -> dict[str, float]:
        """What the model has learned so far that one number tells, by name."""
        return {}

    def configure_optimizers(self) -> Any:
        """The optimizer over what requires gradients, its schedule stepping with it."""
        optimizer, schedule = self.optim.build(self.named_parameters(), self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: EditBatch, batch_idx: int) -> None:
        """Count batches: the sampler of a resumed run goes on from here. What the weights made before is history."""
        self.batches_seen += 1
        self.shown.clear()
        self.batch_ids = batch.ids

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the average see it: before any callback, which may save both."""
        super().optimizer_step(*args, **kwargs)
        self.average.update(self._learning())

    def averaged(self) -> AbstractContextManager[None]:
        """Run a block with the average in the weights' place."""
        return self.average.applied(self._learning())

    def on_validation_epoch_start(self) -> None:
        """Validate the average."""
        self.validating.enter_context(self.averaged())

    def on_validation_epoch_end(self) -> None:
        """Back to the weights, before a callback can save a checkpoint."""
        self.validating.close()

    def _learning(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient's norm and stop before a step that would ruin the weights."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        total = torch.nn.utils.get_total_norm(gradients)
        if self.trainer.precision != "16-mixed":  # there the loss scaler expects overflows and skips such steps
            self.require_finite(total, "the gradient")
        self.record("gradient_norm", total, batch_size=len(self.batch_ids))

    def require_finite(self, value: Tensor, what: str) -> None:
        """Stop training on NaN or infinity, naming the batch and the last good checkpoint."""
        if torch.isfinite(value):
            return
        kept = getattr(self.trainer.checkpoint_callback, "last_model_path", "") or "none written yet"
        raise TrainingError(
            f"{what} is not finite at step {self.global_step}",
            got=f"{value.item()} on the batch {', '.join(self.batch_ids)}",
            fix=f"look at these samples, lower the learning rate or clip gradients; last good checkpoint: {kept}",
        )

    @abstractmethod
    def choices(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one that was cut off, as plain data."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained, its average, and how many batches were seen."""
        checkpoint["batches_seen"] = self.batches_seen
        checkpoint["average"] = self.average.state_dict()
        checkpoint["choices"] = self._choices()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if self.is_saved(k)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model before anything is loaded."""
        own = {k: tuple(v.shape) for k, v in self.state_dict().items() if self.is_saved(k)}
        found = {k: tuple(v.shape) for k, v in checkpoint["state_dict"].items()}
        wrong = sorted(k for k in own.keys() | found.keys() if own.get(k) != found.get(k))
        if wrong:
            listed = [f"{k}: {found.get(k, 'absent')} for {own.get(k, 'none')}" for k in wrong[:5]]
            raise CheckpointError(
                "the checkpoint is of another model",
                got=f"{len(wrong)} tensors differ ({', '.join(listed)}{', ...' if wrong[5:] else ''})",
                fix="resume with the configuration the run was started with (config.yaml in its folder)",
            )
        if self.trainer.state.fn == "fit":
            self._require_same(checkpoint.get("choices", {}))
        self.batches_seen = checkpoint["batches_seen"]
        self.average.load_state_dict(checkpoint.get("average", {}), {n: p.shape for n, p in self._learning()})

    def _choices(self) -> dict[str, str]:
        """The choices, flat and as text, by dotted path."""
        found = {"trainer.accumulate_grad_batches": str(self.trainer.accumulate_grad_batches)}
        pending: list[tuple[str, Any]] = [("model", self.choices() | {"optim": to_dict(self.optim), "seed": self.seed})]
        while pending:
            path, value = pending.pop()
            if isinstance(value, dict):
                pending += [(f"{path}.{name}", inner) for name, inner in value.items()]
            elif not path.endswith((".path", ".subfolder")):  # a folder may be moved; what is in it is told otherwise
                found[path] = str(value)
        return found

    def _require_same(self, before: dict[str, str]) -> None:
        now = self._choices()
        if changed := sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path)):
            told = [f"{path} = {now.get(path, 'nothing')} for {before.get(path, 'nothing')}" for path in changed[:5]]
            raise CheckpointError(
                "a run goes on with the choices that it was started with",
                got=", ".join(told),
                fix="leave them, or start a new run from this one's model folder (model.init)",
            )


def made_a_step(trainer: L.Trainer, callback: Any) -> bool:
    """Whether an optimizer step was made since a callback last asked: with accumulation not every batch makes one."""
    before, callback.seen_step = getattr(callback, "seen_step", 0), trainer.global_step
    return trainer.global_step != before
