"""LitModule and LitEncoder: base classes of kiwi's LightningModules, with optimizer, averaging and checkpoints."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from kiwi.data.datamodule import EditData
from kiwi.data.sample import EditBatch, EditSample
from kiwi.encoded import Pixels
from kiwi.errors import CheckpointError, InputError, TrainingError
from kiwi.media.files import atomic_folder
from kiwi.models.mllm.encoder import MllmEncoder
from kiwi.models.vae.wan import VideoVae
from kiwi.spec import Spec, to_dict
from kiwi.training.averaging import RESUME_FIX, AveragingSpec
from kiwi.training.checkpointing import rewind_to_last_step
from kiwi.training.optim import OptimSpec
from kiwi.training.trainer import validation_follows

Clips = dict[str, Pixels]
"""Clips of one sample by title, each uint8 (F, H, W, 3), to be displayed side by side."""

RENAMED_SETTINGS = {"emphasis": "loss_weighting"}
"""Current names of module arguments, by the names that checkpoints of the previous release use."""

_PRECISION = "trainer.precision"


class Preview(NamedTuple):
    """A model's output for one sample, for visual inspection."""

    clips: Clips
    caption: str


class LitModule(L.LightningModule, ABC):
    """A LightningModule that builds its optimizer from a spec, stops at NaN, and saves only tensors that are trained.

    Args:
        optim: optimizer and schedule.
        averaging: weight averaging; validation, previews and exports use the average.
        seed: seed of the initial weights and of all randomness in training.
    """

    def __init__(self, optim: OptimSpec, averaging: AveragingSpec, seed: int) -> None:
        super().__init__()
        self.optim, self.seed = optim, seed
        self.average = averaging.build()
        self.validation_stack = ExitStack()
        self.metrics_since_last_pop: dict[str, list[Tensor]] = {}
        self.batch_ids: list[str] = []
        self.batches_seen = 0
        self.is_validation_due = False
        """Whether the loaded checkpoint was saved just before a validation, which the run was stopped in."""
        self.preview_cache: dict[tuple[int, int], tuple[EditSample, Preview]] = {}
        """Previews with the current weights, by sample index and seed."""
        # Frozen parts stay out of checkpoints; `on_load_checkpoint` checks the rest strictly.
        self.strict_loading = False

    # --- to be defined by subclasses ------------------------------------------------------------------

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """Heights and widths of the data must be multiples of this many pixels."""

    @property
    def is_pretrained(self) -> bool:
        """Whether the module was built from trained weights, so that `kiwi validate` needs no checkpoint."""
        return False

    @abstractmethod
    def preview(self, batch: EditBatch, seed: int) -> Preview:
        """Run the model on one sample, given as a batch of one on the module's device."""

    @abstractmethod
    def export(self, folder: Path, *, self_contained: bool) -> None:
        """Write the trained model as a folder that other modules can load.

        Args:
            folder: output folder; an earlier export is replaced as a whole.
            self_contained: copy pretrained parts from local folders instead of storing their paths.
        """

    @abstractmethod
    def list_unexpected_files(self, folder: Path) -> list[str]:
        """Names of files in a folder that `export` would not have written."""

    def is_saved(self, name: str) -> bool:
        """Whether a tensor of the state dict is saved in checkpoints; tensors of frozen parts are not."""
        return True

    def resume_config(self) -> dict[str, Any]:
        """Settings, as plain data, that must not change on resuming, besides optimizer and seed."""
        return {}

    def learned_scalars(self) -> dict[str, float]:
        """Trained values that are interesting as curves, such as the source scale, by the name to log them under."""
        return {}

    # --- metrics --------------------------------------------------------------------------------------

    def log_metric(self, name: str, value: Tensor, *, batch_size: int, prog_bar: bool = False) -> None:
        """Log a metric of this batch, the same in all processes, as `train/NAME`, and keep it for metrics.jsonl."""
        self.log(f"train/{name}", value, batch_size=batch_size, prog_bar=prog_bar)
        self.metrics_since_last_pop.setdefault(name, []).append(value.detach())

    def pop_metrics(self) -> dict[str, float]:
        """Means of the metrics logged since the last call, by name."""
        logged, self.metrics_since_last_pop = self.metrics_since_last_pop, {}
        return {name: float(torch.stack(values).float().mean()) for name, values in logged.items()}

    # --- training -------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Clear the preview cache: the weights may have changed."""
        self.preview_cache.clear()

    def configure_optimizers(self) -> Any:
        """Build the optimizer of the trainable parameters, and the schedule, which steps with it."""
        optimizer, schedule = self.optim.build(self.named_parameters(), self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: EditBatch, batch_idx: int) -> None:
        """Count the batch, so that a resumed run's sampler continues after it, and clear the preview cache."""
        self.batches_seen += 1
        self.preview_cache.clear()
        self.batch_ids = batch.ids

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weights and their average, before any callback can save them."""
        super().optimizer_step(*args, **kwargs)
        self.average.update(self.trainable_parameters())

    def averaged(self) -> AbstractContextManager[None]:
        """Run a block with the average in place of the weights."""
        return self.average.applied(self.trainable_parameters())

    def on_validation_batch_start(self, *args: Any) -> None:
        self.stop_at_sigterm()

    def stop_at_sigterm(self) -> None:
        """Stop a single process that received SIGTERM, which Lightning looks for between training batches only."""
        if self.trainer.received_sigterm and self.trainer.world_size == 1:
            raise SIGTERMException

    def on_validation_epoch_start(self) -> None:
        """Replace the weights by their average."""
        self.validation_stack.enter_context(self.averaged())

    def on_validation_epoch_end(self) -> None:
        """Restore the weights, before a callback can save a checkpoint."""
        self.validation_stack.close()

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Named parameters that require gradients."""
        return [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient norm, and stop training if it is not finite, before the weights are updated."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.trainer.precision != "16-mixed":  # with a loss scaler, overflows are expected and skipped
            self.require_finite(norm, "the gradient")
        self.log_metric("gradient_norm", norm, batch_size=len(self.batch_ids))

    def require_finite(self, value: Tensor, name: str) -> None:
        """Raise a TrainingError that names the batch and the last good checkpoint if a value is NaN or infinite."""
        if torch.isfinite(value):
            return
        last_good = getattr(self.trainer.checkpoint_callback, "last_model_path", "") or "none written yet"
        problem = f"{name} is not finite at step {self.global_step}"
        got = f"{value.item()} for the batch {', '.join(self.batch_ids)}"
        fix = f"inspect these samples, lower the learning rate or clip gradients; last good checkpoint: {last_good}"
        raise TrainingError(problem, code="not-finite", got=got, fix=fix)

    # --- checkpoints ----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the trained tensors, their average, the number of batches seen, and the settings needed to resume."""
        repeated = rewind_to_last_step(checkpoint, self.trainer.accumulate_grad_batches)
        checkpoint["batches_seen"] = self.batches_seen - repeated
        checkpoint["validation_due"] = not repeated and validation_follows(self.trainer)
        checkpoint["average"] = self.average.state_dict()
        checkpoint["resume_config"] = self._flatten_resume_config()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if self.is_saved(k)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reject a checkpoint of a different model or configuration before any tensor is loaded.

        Raises:
            CheckpointError: names or shapes of tensors differ, or, when training, settings differ.
        """
        expected = {k: tuple(v.shape) for k, v in self.state_dict().items() if self.is_saved(k)}
        shapes = {k: tuple(v.shape) for k, v in checkpoint["state_dict"].items()}
        differing = sorted(k for k in expected.keys() | shapes.keys() if expected.get(k) != shapes.get(k))
        if differing:
            listed = [f"{k}: {shapes.get(k, 'missing')} instead of {expected.get(k, 'none')}" for k in differing[:5]]
            got = f"{len(differing)} different tensors ({', '.join(listed)}{', ...' if differing[5:] else ''})"
            problem = "the checkpoint was saved from a different model"
            raise CheckpointError(problem, code="mismatched-weights", got=got, fix=RESUME_FIX)
        if self.trainer.state.fn == "fit":
            self._require_same_config(checkpoint)
        self.batches_seen = checkpoint["batches_seen"]
        self.is_validation_due = checkpoint.get("validation_due", False)
        trainable_shapes = {name: parameter.shape for name, parameter in self.trainable_parameters()}
        self.average.load_state_dict(checkpoint.get("average", {}), trainable_shapes)

    def _flatten_resume_config(self) -> dict[str, str]:
        """All settings that must not change on resuming, as text by dotted path."""
        flat = {
            "trainer.accumulate_grad_batches": str(self.trainer.accumulate_grad_batches),
            _PRECISION: str(self.trainer.precision),
        }
        settings = self.resume_config() | {"optim": to_dict(self.optim), "seed": self.seed}
        pending: list[tuple[str, Any]] = [("model", settings)]
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
            saved = _rename_settings(checkpoint.get("choices", {}))  # the key of the previous release
        current = self._flatten_resume_config()
        saved = {_PRECISION: current[_PRECISION]} | saved  # earlier releases did not save it
        if changed := sorted(path for path in saved.keys() | current.keys() if saved.get(path) != current.get(path)):
            got, expected = (
                ", ".join(f"{path} = {settings.get(path, 'not set')}" for path in changed[:5])
                for settings in (current, saved)
            )
            problem = "cannot resume: the configuration has changed"
            fix = "restore these settings, or start a new run from the model folder of this one (model.init)"
            raise CheckpointError(problem, code="changed-settings", got=got, expected=expected, fix=fix)


class LitEncoder(LitModule):
    """Trains a VAE or an MLLM, which editors then use frozen, on pixels. See `LitModule` for the arguments."""

    def __init__(
        self, optim: OptimSpec, averaging: AveragingSpec, export_dtype: Literal["float32", "float16"], seed: int
    ) -> None:
        super().__init__(optim, averaging, seed)
        self.export_dtype = getattr(torch, export_dtype)

    @property
    @abstractmethod
    def encoder(self) -> VideoVae | MllmEncoder:
        """The model to train."""

    @abstractmethod
    def compute_loss(self, batch: EditBatch) -> Tensor:
        """Compute the training loss of a batch."""

    @property
    def is_pretrained(self) -> bool:
        return bool(self.encoder.fingerprint)

    def setup(self, stage: str) -> None:
        """Reject a cache, which holds latents and features instead of pixels."""
        super().setup(stage)
        data = self.trainer.datamodule
        if isinstance(data, EditData) and data.cache is not None:
            problem = f"{type(self).__name__} is trained on pixels, which the cache {data.cache} does not hold"
            raise InputError(problem, code="cache-not-allowed", fix="remove data.cache")

    def training_step(self, batch: EditBatch, batch_idx: int) -> Tensor:
        """Compute the loss, and log its mean over all processes."""
        loss = self.compute_loss(batch)
        self.require_finite(loss, "the loss")
        self.log_metric("loss", self.all_gather(loss.detach()).mean(), prog_bar=True, batch_size=len(batch.ids))
        return loss

    def export(self, folder: Path, *, self_contained: bool) -> None:
        with atomic_folder(folder, self.list_unexpected_files) as new:
            self.encoder.save(new, self.export_dtype)


def get_edit_data(trainer: L.Trainer) -> EditData:
    """The EditData of a run, which kiwi's callbacks require; modules can be trained on plain DataLoaders too."""
    data = trainer.datamodule
    assert isinstance(data, EditData)
    return data


def _rename_settings(settings: dict[str, str]) -> dict[str, str]:
    """Replace former names in the settings of a previous release's checkpoint by current names."""
    renamed = dict(RENAMED_SETTINGS)
    for spec in Spec._registry.values():
        renamed |= {f.metadata["formerly"]: f.name for f in fields(spec) if "formerly" in f.metadata}
    return {
        ".".join(renamed.get(part, part) for part in path.split(".")): Spec._renamed.get(value, value)
        for path, value in settings.items()
    }
