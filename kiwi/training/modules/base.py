"""The base of all trainable modules: optimizer, weight averaging, metrics, and checkpoints that a run resumes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn

from kiwi.data.datamodule import EditData
from kiwi.data.sample import EditBatch, EditSample
from kiwi.encoded import Pixels
from kiwi.errors import CheckpointError, InputError, TrainingError
from kiwi.spec import Spec, to_dict
from kiwi.training.averaging import AveragingSpec
from kiwi.training.optim import OptimSpec

Clips = dict[str, Pixels]
"""Clips of one sample by title, uint8 (F, H, W, 3) each, to be shown side by side."""

RENAMED_SETTINGS = {"emphasis": "loss_weighting"}
"""Arguments of modules by the names that checkpoints of the previous release have them under."""


class Preview(NamedTuple):
    """A model's output for one sample, to look at."""

    clips: Clips
    caption: str


class LitModule(L.LightningModule, ABC):
    """A LightningModule with an optimizer spec that stops at NaN and saves only trained tensors.

    Args:
        optim: optimizer and schedule.
        averaging: of the weights; the average is validated, previewed and exported.
        seed: of initial weights and all randomness of training.
    """

    def __init__(self, optim: OptimSpec, averaging: AveragingSpec, seed: int) -> None:
        super().__init__()
        self.optim, self.seed = optim, seed
        self.average = averaging.build()
        self.validation_stack = ExitStack()
        self.pending_metrics: dict[str, list[Tensor]] = {}
        self.batch_ids: list[str] = []
        self.batches_seen = 0
        self.preview_cache: dict[tuple[int, int], tuple[EditSample, Preview]] = {}
        # Frozen parts stay out of checkpoints; `on_load_checkpoint` checks the rest strictly.
        self.strict_loading = False

    # --- what a module defines ------------------------------------------------------------------------

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """Heights and widths of the data must be multiples of this many pixels."""

    @property
    def is_pretrained(self) -> bool:
        """Whether the module was built from trained weights, so that it can be validated without a checkpoint."""
        return False

    @abstractmethod
    def preview(self, batch: EditBatch, seed: int) -> Preview:
        """Run the model on one sample (a batch of one, on the module's device)."""

    @abstractmethod
    def export(self, folder: Path, *, self_contained: bool) -> None:
        """Write the trained part as a folder that other modules load.

        Args:
            folder: replaced as a whole.
            self_contained: copy pretrained parts that lie in local folders instead of naming their paths.
        """

    @abstractmethod
    def unexpected_files(self, folder: Path) -> list[str]:
        """Names of files in a folder that `export` would not have written."""

    def is_saved(self, name: str) -> bool:
        """Whether a tensor of the state dict belongs in checkpoints; those of frozen parts do not."""
        return True

    def resume_config(self) -> dict[str, Any]:
        """Settings besides optimizer and seed that a resumed run must share with the interrupted one; plain data."""
        return {}

    def scalar_probes(self) -> dict[str, float]:
        """Learned quantities to log beside the loss, by name."""
        return {}

    # --- metrics --------------------------------------------------------------------------------------

    def log_metric(self, name: str, value: Tensor, *, batch_size: int, prog_bar: bool = False) -> None:
        """Log a metric of this batch as `train/NAME`, and keep it for metrics.jsonl.

        The value must be the same in all processes.
        """
        self.log(f"train/{name}", value, batch_size=batch_size, prog_bar=prog_bar)
        self.pending_metrics.setdefault(name, []).append(value.detach())

    def pop_metrics(self) -> dict[str, float]:
        """Means of the metrics logged since the last call, by name."""
        means = {name: float(torch.stack(values).float().mean()) for name, values in self.pending_metrics.items()}
        self.pending_metrics = {}
        return means

    # --- training -------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Clear the preview cache: the weights may have changed."""
        self.preview_cache.clear()

    def configure_optimizers(self) -> Any:
        """The optimizer over the trainable parameters, its schedule stepping with it."""
        optimizer, schedule = self.optim.build(self.named_parameters(), self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: EditBatch, batch_idx: int) -> None:
        """Count batches, which is where the sampler of a resumed run continues, and clear the preview cache."""
        self.batches_seen += 1
        self.preview_cache.clear()
        self.batch_ids = batch.ids

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step and update the average, before any callback saves both."""
        super().optimizer_step(*args, **kwargs)
        self.average.update(self.trainable_parameters())

    def averaged(self) -> AbstractContextManager[None]:
        """Run a block with the average in place of the weights."""
        return self.average.applied(self.trainable_parameters())

    def on_validation_epoch_start(self) -> None:
        """Swap the average in."""
        self.validation_stack.enter_context(self.averaged())

    def on_validation_epoch_end(self) -> None:
        """Swap the weights back in, before a callback can save a checkpoint."""
        self.validation_stack.close()

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Named parameters that require gradients."""
        return [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient's norm, and stop before a step that would ruin the weights."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        total = torch.nn.utils.get_total_norm(gradients)
        if self.trainer.precision != "16-mixed":  # there the loss scaler expects overflows and skips such steps
            self.require_finite(total, "the gradient")
        self.log_metric("gradient_norm", total, batch_size=len(self.batch_ids))

    def require_finite(self, value: Tensor, name: str) -> None:
        """Stop training on NaN or infinity, naming the batch and the last good checkpoint.

        Raises:
            TrainingError: the value is not finite.
        """
        if torch.isfinite(value):
            return
        last_good = getattr(self.trainer.checkpoint_callback, "last_model_path", "") or "none written yet"
        raise TrainingError(
            f"{name} is not finite at step {self.global_step}",
            code="non-finite",
            got=f"{value.item()} on the batch {', '.join(self.batch_ids)}",
            fix=f"inspect these samples, lower the learning rate or clip gradients; last good checkpoint: {last_good}",
        )

    # --- checkpoints ----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the trained tensors, their average, the number of batches seen and the settings to resume with."""
        checkpoint["batches_seen"] = self.batches_seen
        checkpoint["average"] = self.average.state_dict()
        checkpoint["resume_config"] = self._flat_resume_config()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if self.is_saved(k)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model or configuration before anything is loaded.

        Raises:
            CheckpointError: tensors of other names or shapes, or, when training, other settings.
        """
        expected = {k: tuple(v.shape) for k, v in self.state_dict().items() if self.is_saved(k)}
        shapes = {k: tuple(v.shape) for k, v in checkpoint["state_dict"].items()}
        differing = sorted(k for k in expected.keys() | shapes.keys() if expected.get(k) != shapes.get(k))
        if differing:
            listed = [f"{k}: {shapes.get(k, 'absent')} for {expected.get(k, 'none')}" for k in differing[:5]]
            raise CheckpointError(
                "the checkpoint is of another model",
                code="other-model",
                got=f"{len(differing)} tensors differ ({', '.join(listed)}{', ...' if differing[5:] else ''})",
                fix="resume with the configuration that the run was started with (config.yaml in its folder)",
            )
        if self.trainer.state.fn == "fit":
            self._require_same_config(checkpoint)
        self.batches_seen = checkpoint["batches_seen"]
        self.average.load_state_dict(
            checkpoint.get("average", {}), {name: p.shape for name, p in self.trainable_parameters()}
        )

    def _flat_resume_config(self) -> dict[str, str]:
        """The settings that a resumed run must share, as text by dotted path."""
        flat = {"trainer.accumulate_grad_batches": str(self.trainer.accumulate_grad_batches)}
        pending: list[tuple[str, Any]] = [
            ("model", self.resume_config() | {"optim": to_dict(self.optim), "seed": self.seed})
        ]
        while pending:
            path, value = pending.pop()
            if isinstance(value, dict):
                pending += [(f"{path}.{name}", inner) for name, inner in value.items()]
            elif not path.endswith((".path", ".subfolder")):  # folders may be moved
                flat[path] = str(value)
        return flat

    def _require_same_config(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("resume_config")
        if saved is None:
            saved = _with_current_names(checkpoint.get("choices", {}))  # as the previous release saved it
        current = self._flat_resume_config()
        if changed := sorted(path for path in saved.keys() | current.keys() if saved.get(path) != current.get(path)):
            raise CheckpointError(
                "cannot resume: the configuration has changed",
                code="configuration-changed",
                got=", ".join(f"{path} = {current.get(path, 'not set')}" for path in changed[:5]),
                expected=", ".join(f"{path} = {saved.get(path, 'not set')}" for path in changed[:5]),
                fix="restore these settings, or start a new run from the model folder of this one (model.init)",
            )


def edit_data(trainer: L.Trainer) -> EditData:
    """The EditData of a run; modules can be trained on plain DataLoaders too, the callbacks cannot."""
    data = trainer.datamodule
    assert isinstance(data, EditData)
    return data


def require_no_cache(trainer: L.Trainer, model: str) -> None:
    """Refuse data from a cache, which holds latents and features, for a model that is trained on pixels.

    Raises:
        InputError: the data has a cache.
    """
    data = trainer.datamodule
    if isinstance(data, EditData) and data.cache is not None:
        raise InputError(
            f"{model} is trained on pixels, not on a cache",
            code="cache-not-allowed",
            got=f"data.cache {data.cache}",
            fix="remove data.cache",
        )


def _with_current_names(settings: dict[str, str]) -> dict[str, str]:
    """Settings that a checkpoint of the previous release holds, under their current names."""
    renamed = dict(RENAMED_SETTINGS)
    for spec in Spec._registry.values():
        renamed |= {f.metadata["formerly"]: f.name for f in fields(spec) if "formerly" in f.metadata}
    return {
        ".".join(renamed.get(part, part) for part in path.split(".")): Spec._renamed.get(value, value)
        for path, value in settings.items()
    }
