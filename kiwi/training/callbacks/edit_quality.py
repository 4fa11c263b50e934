"""Validation of complete edits: each is made as previews are, and compared with its target."""

from __future__ import annotations

from typing import NamedTuple

import lightning as L
import torch.distributed as dist

from kiwi.errors import InputError
from kiwi.evaluation.fidelity import edit_metrics
from kiwi.evaluation.perceptual import NoPerceptual, PerceptualMaps, PerceptualSpec
from kiwi.training.callbacks.previews import preview_dataset, preview_sample, select_indices
from kiwi.training.modules.editor import LitKiwi


class EditMetrics(NamedTuple):
    """`edit_metrics` of one sample: of the edit, and of the unedited source."""

    edit: dict[str, float]
    copy: dict[str, float]


class EditQuality(L.Callback):
    """Edits fixed samples at each validation and compares them with their targets: val/edit_psnr, val/edit_ssim.

    Beside each metric stands that of the unedited source (val/copy_psnr), which an edit must beat to be of any use.
    Where manifests have masks, edit_psnr_inside measures the edit and edit_psnr_outside what should not change.
    `val/edits` counts the samples; `val/edits_inside` and `val/edits_outside` those that have the side. PSNR is
    `frame_psnr`, in dB. For autoencoders the callback does nothing: they log their own val/psnr.

    Args:
        items: samples of the validation set, from every task; null makes no edits.
        seed: of the starting noise; if it is that of the previews, samples that both use are edited once.
        perceptual: a metric by a pretrained network, such as Lpips.
    """

    def __init__(
        self,
        items: int | None = 8,
        seed: int = 0,
        perceptual: PerceptualSpec = NoPerceptual(),  # noqa: B008  (frozen)
    ) -> None:
        if items is not None and items < 1:
            raise InputError(
                "quality.items must be at least 1",
                code="out-of-range",
                got=items,
                fix="set it to null to turn these metrics off",
            )
        self.items, self.seed, self.perceptual = items, seed, perceptual
        self.copy_metrics: dict[int, dict[str, float]] = {}
        self.perceptual_maps: PerceptualMaps | None = None

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Load the perceptual metric, so that missing weights stop the run before any work."""
        self.copy_metrics, self.perceptual_maps = {}, None
        if self.items is None or not isinstance(module, LitKiwi):
            return
        sides = [side for bucket in preview_dataset(trainer).buckets for side in (bucket.height, bucket.width)]
        if min(sides) < self.perceptual.min_side:
            raise InputError(
                f"the frames are too small for {type(self.perceptual).__name__}",
                code="frames-too-small",
                got=f"{min(sides)} pixels",
                expected=f"{self.perceptual.min_side} at least",
                fix="--quality.perceptual=NoPerceptual, or larger videos",
            )
        self.perceptual_maps = self.perceptual.build(trainer.strategy.root_device)

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Edit, compare and log; the numbers are the same in every process."""
        if self.perceptual_maps is None or trainer.sanity_checking:
            return
        assert isinstance(module, LitKiwi)
        samples = _gather_metrics(self._compare_edits(trainer, module, self.perceptual_maps))
        for name, value in _summarize(samples).items():
            module.log(f"val/{name}", value, rank_zero_only=True)

    def _compare_edits(self, trainer: L.Trainer, module: LitKiwi, maps: PerceptualMaps) -> dict[int, EditMetrics]:
        """Metrics of this process's share of the samples, by their position among all.

        Every process makes the same number of edits, some of which are discarded: sharded weights are gathered by all
        processes together.
        """
        assert self.items is not None
        indices = select_indices(preview_dataset(trainer), self.items)
        metrics = {}
        for turn in range(-(-len(indices) // trainer.world_size)):
            position = turn * trainer.world_size + trainer.global_rank
            index = indices[min(position, len(indices) - 1)]
            sample, preview = preview_sample(trainer, module, index, self.seed)
            if position >= len(indices):
                continue
            target, mask = sample.target_FHWC, sample.mask_FHW
            if index not in self.copy_metrics:
                self.copy_metrics[index] = edit_metrics(sample.source_FHWC, target, mask, maps, module.device)
            edit = edit_metrics(preview.clips["edit"], target, mask, maps, module.device)
            metrics[position] = EditMetrics(edit, self.copy_metrics[index])
        return metrics


def _gather_metrics(share: dict[int, EditMetrics]) -> list[EditMetrics]:
    """The metrics of all processes, in the order of the samples."""
    shares = [share]
    if dist.is_available() and dist.is_initialized():
        shares *= dist.get_world_size()
        dist.all_gather_object(shares, share)
    together = {position: metrics for share in shares for position, metrics in share.items()}
    return [together[position] for position in sorted(together)]


def _summarize(samples: list[EditMetrics]) -> dict[str, float]:
    """Means over the samples that have a metric, and their number."""
    summary: dict[str, float] = {"edits": len(samples)}
    for side in ("inside", "outside"):
        if count := sum(f"psnr_{side}" in sample.edit for sample in samples):
            summary[f"edits_{side}"] = count
    for kind in EditMetrics._fields:
        rows: list[dict[str, float]] = [getattr(sample, kind) for sample in samples]
        for name in sorted({name for row in rows for name in row}):
            values = [row[name] for row in rows if name in row]
            summary[f"{kind}_{name}"] = sum(values) / len(values)
    return summary
