"""LitKiwi: the editor, trained by flow matching, and validated with its own and with a swapped source (B samples)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from kiwi.checkpoints.folder import load_initial_weights, save_pretrained, select_saved_names
from kiwi.checkpoints.folder_config import list_unexpected_files
from kiwi.data.augmentation import ConditionDropout
from kiwi.data.datamodule import EditData
from kiwi.data.sample import EditBatch, to_pixels
from kiwi.data.sandbox import SandboxEdits
from kiwi.encoded import LatentDistribution, Pixels, Size, VisionFeatures
from kiwi.errors import InputError
from kiwi.models.config import TRAINABLE, KiwiConfig
from kiwi.models.injection import ScaledInjection
from kiwi.models.kiwi import Conditions, KiwiEdit
from kiwi.models.sampling import EditingDefaults, Sampling, sample_edits
from kiwi.spec import to_dict
from kiwi.training.averaging import AveragingSpec, NoAveraging
from kiwi.training.loss_weighting import LossWeighting, Uniform
from kiwi.training.modules.base import Preview
from kiwi.training.modules.flow import LitFlow
from kiwi.training.optim import AdamW, OptimSpec
from kiwi.training.source_check import SIGMAS


class LitKiwi(LitFlow):
    """Trains parts of a KiwiEdit model by flow matching (velocity prediction).

    Args:
        config: architecture of the model.
        optim: optimizer and schedule.
        averaging: weight averaging; validation, previews and exports use the average.
        train_parts: trainable parts: any of dit, query, latent, source, reference, mllm. The `tuning` of DiT and MLLM
            determines whether they are trained in full, by adapters, or not at all (the MLLM's default).
        init: model folder with the initial weights, such as that of an earlier stage. Parts that it does not contain
            must be the same pretrained models, or untrained adapters.
        sampling: sampling options of previews, and the defaults of `kiwi edit` for the exported model.
        dropout: probability of dropping each condition during training.
        loss_weighting: weights of the training loss over the positions of a video.
        targets: use the mode of the VAE's posterior as the target latents, or sample from it at every step. Sources,
            references and validation always use the mode.
        export_dtype: data type of the editor's own weights in the exported folder; float16 halves its size.
        seed: seed of the initial weights and of all randomness in training.
    """

    def __init__(
        self,
        config: KiwiConfig,
        optim: OptimSpec = AdamW(),  # noqa: B008  (frozen)
        averaging: AveragingSpec = NoAveraging(),  # noqa: B008  (frozen)
        train_parts: tuple[str, ...] = TRAINABLE,
        init: str | None = None,
        sampling: Sampling = Sampling(steps=20),  # noqa: B008  (frozen)
        dropout: ConditionDropout = ConditionDropout(),  # noqa: B008  (frozen)
        loss_weighting: LossWeighting = Uniform(),  # noqa: B008  (frozen)
        targets: Literal["mode", "sample"] = "mode",
        export_dtype: Literal["float32", "float16"] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(optim, averaging, seed, targets)
        if not train_parts or not set(train_parts) <= set(TRAINABLE):
            problem, expected = "model.train_parts contains parts that cannot be trained", f"some of {TRAINABLE}"
            raise InputError(problem, code="unknown-part", got=train_parts, expected=expected)
        self.train_parts = tuple(train_parts)
        self.export_dtype = None if export_dtype is None else getattr(torch, export_dtype)
        self.editor = KiwiEdit(config, seed=seed)
        if init is not None:
            load_initial_weights(self.editor, init)
        for part in set(TRAINABLE) - set(train_parts):
            getattr(self.editor, part).requires_grad_(False)
        self.sampling, self.dropout, self.loss_weighting = sampling, dropout, loss_weighting
        self.previous_sources: dict[Size, list[_SourceClip]] = {}
        """Sources of the last validation batch of each size."""

    # --- training -------------------------------------------------------------------------------------

    @property
    def network(self) -> KiwiEdit:
        return self.editor

    def encoder_fingerprints(self) -> dict[str, str]:
        return super().encoder_fingerprints() | {"mllm": self.editor.mllm.vision_fingerprint()}

    def training_step(self, batch: EditBatch, batch_idx: int) -> Tensor:
        """Compute the loss of a batch after condition dropout."""
        return super().training_step(self.apply_condition_dropout(batch), batch_idx)

    @torch.no_grad()
    def apply_condition_dropout(self, batch: EditBatch) -> EditBatch:
        """Encode the sources once for all uses, and drop conditions from the batch."""
        if batch.source_posterior is None:
            batch = replace(batch, source_posterior=self.vae.posterior(batch.source_BCFHW))
        return self.dropout.apply(batch, self.seed, self.global_step)

    def encode_conditions(self, batch: EditBatch) -> Conditions:
        return self.editor.encode(batch, self.get_source_latents(batch))

    def weigh_positions(self, batch: EditBatch, target_BCFHW: Tensor) -> Tensor:
        assert batch.source_posterior is not None
        return self.loss_weighting.weights(target_BCFHW, batch.source_posterior.mean)

    @torch.no_grad()
    def get_source_latents(self, batch: EditBatch) -> Tensor | None:
        """Latents of the sources, or None if the batch has none; dropped sources are replaced by encoded grey video."""
        if batch.source_posterior is None or not batch.source_dropped:
            return None if batch.source_posterior is None else batch.source_posterior.mean
        latents = batch.source_posterior.mean.clone()
        latents[batch.source_dropped] = self.editor.vae.encode(latents.new_zeros(1, 3, *batch.size))
        return latents

    def learned_scalars(self) -> dict[str, float]:
        """The source scale gamma at the noise levels of validation; empty if the source is not scaled."""
        source = self.editor.source
        if not isinstance(source, ScaledInjection):
            return {}
        with torch.no_grad():
            gammas = source.scale(torch.tensor(SIGMAS, device=self.device))
        return {f"gamma_at_{sigma:g}": float(gamma) for sigma, gamma in zip(SIGMAS, gammas, strict=True)}

    # --- validation -----------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.previous_sources = {}

    def swap_conditions(self, batch: EditBatch) -> EditBatch | None:
        """Replace every source by that of another sample, from this batch or the previous one of the same size."""
        whole = batch.source_posterior
        posteriors = [None] * len(batch.ids) if whole is None else map(LatentDistribution, *whole)
        sources = list(map(_SourceClip, batch.source_frames, batch.source_BCFHW, posteriors))
        candidates = [*sources, *self.previous_sources.get(batch.size, [])]
        self.previous_sources[batch.size] = sources
        swapped = []
        for index, source in enumerate(sources):
            other_sources = candidates[index + 1 :] + candidates[:index]
            donor = next((candidate for candidate in other_sources if not candidate.is_same_clip(source)), None)
            if donor is None:
                return None
            swapped.append(donor)
        return replace(
            batch,
            source_frames=[source.frames for source in swapped],
            source_BCFHW=torch.stack([source.pixels_CFHW for source in swapped]),
            source_posterior=LatentDistribution.stack([source.posterior for source in swapped]),
        )

    # --- for commands and callbacks -------------------------------------------------------------------

    def resume_config(self) -> dict[str, Any]:
        return {
            "config": to_dict(self.editor.config),
            "dropout": to_dict(self.dropout),
            "loss_weighting": to_dict(self.loss_weighting),
            "targets": self.targets,
            "train_parts": sorted(self.train_parts),
        }

    def is_saved(self, name: str) -> bool:
        return bool(select_saved_names(self.editor.config, [name.removeprefix("editor.")]))

    def export(self, folder: Path, *, self_contained: bool) -> None:
        data, defaults = self.trainer.datamodule, EditingDefaults(sampling=self.sampling)
        if isinstance(data, EditData):
            defaults = defaults.replace(
                max_pixels=data.max_pixels,
                max_frames=max(bucket.frames for bucket in data.datasets["train"].buckets),
                domain="sandbox" if all(isinstance(source, SandboxEdits) for source in data.train) else "",
            )
        save_pretrained(self.editor, folder, defaults, self_contained=self_contained, dtype=self.export_dtype)

    def list_unexpected_files(self, folder: Path) -> list[str]:
        return list_unexpected_files(folder)

    def preview(self, batch: EditBatch, seed: int) -> Preview:
        """Edit the sample; clips are the reference (if there is one), source, edit and target."""
        (edit,) = sample_edits(self.editor, batch, self.sampling, seed)
        clips = {"reference": to_pixels(batch.references_BRCHW[0].transpose(0, 1))} if batch.reference_images[0] else {}
        shown = {"source": batch.source_BCFHW[0], "edit": edit, "target": batch.target_BCFHW[0]}
        clips |= {title: to_pixels(video) for title, video in shown.items()}
        return Preview(clips, batch.instructions[0])


class _SourceClip(NamedTuple):
    """The source of a validation sample, in every form that a batch contains it."""

    frames: Pixels | VisionFeatures
    pixels_CFHW: Tensor
    posterior: LatentDistribution | None

    def is_same_clip(self, other: _SourceClip) -> bool:
        """Whether both have the same latents, or, without latents, the same pixels."""
        if self.posterior is not None and other.posterior is not None:
            return torch.equal(self.posterior.mean, other.posterior.mean)
        return torch.equal(self.pixels_CFHW, other.pixels_CFHW)
