"""Validate complete edits: edit validation samples, and compare the edits with their targets."""

from functools import partial
from typing import NamedTuple

import lightning as L
import torch.distributed as dist

from kiwi.errors import InputError
from kiwi.evaluation.fidelity import NoPerceptual, PerceptualMetric, PerceptualSpec, compute_edit_metrics
from kiwi.training.callbacks.previews import get_preview_dataset, preview_sample, select_indices
from kiwi.training.modules.editor import LitKiwi


class EditMetrics(NamedTuple):
    """Metrics of one sample's edit and of its unedited source (`copy`), from `compute_edit_metrics`."""

    edit: dict[str, float]
    copy: dict[str, float]


class EditQuality(L.Callback):
    """Edits fixed samples at each validation and compares them with their targets: val/edit_psnr, val/edit_ssim.

    Each metric is also logged for the unedited source (val/copy_psnr), which a useful edit must exceed. If manifests
    have masks, edit_psnr_inside covers the edited region, and edit_psnr_outside the region that should not change.
    `val/edits` is the number of samples; `val/edits_inside` and `val/edits_outside` are the numbers of samples with
    such a region. PSNR is `frame_psnr`, in dB. The callback does nothing for modules other than LitKiwi.

    Args:
        items: total number of validation samples, spread over the tasks; null turns the callback off.
        seed: seed of the initial noise; if it equals the seed of the previews, samples used by both are edited once.
        perceptual: perceptual metric of a pretrained network, such as Lpips.
    """

    def __init__(
        self,
        items: int | None = 8,
        seed: int = 0,
        perceptual: PerceptualSpec = NoPerceptual(),  # noqa: B008  (frozen)
    ) -> None:
        if items is not None and items < 1:
            fix = "set it to null to turn these metrics off"
            raise InputError("quality.items must be at least 1", code="out-of-range", got=items, fix=fix)
        self.items, self.seed, self.perceptual = items, seed, perceptual
        self.copy_metrics: dict[int, dict[str, float]] = {}
        self.compute_distance_maps: PerceptualMetric | None = None

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Load the perceptual metric now, so that missing weights stop the run before training starts."""
        self.copy_metrics, self.compute_distance_maps = {}, None
        if self.items is None or not isinstance(module, LitKiwi):
            return
        shortest = min(min(bucket.height, bucket.width) for bucket in get_preview_dataset(trainer).buckets)
        if shortest < self.perceptual.min_side:
            problem = f"frames of {shortest} pixels are too small for {type(self.perceptual).__name__}"
            expected = f"at least {self.perceptual.min_side} pixels"
            fix = "use --quality.perceptual=NoPerceptual, or larger videos"
            raise InputError(problem, code="frames-too-small", expected=expected, fix=fix)
        self.compute_distance_maps = self.perceptual.build(trainer.strategy.root_device)

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Edit samples, compare them with their targets, and log the means over all processes."""
        if self.compute_distance_maps is None or trainer.sanity_checking:
            return
        assert isinstance(module, LitKiwi)
        samples = _gather_metrics(self._compare_edits(trainer, module))
        for name, value in _summarize(samples).items():
            module.log(f"val/{name}", value, rank_zero_only=True)

    def _compare_edits(self, trainer: L.Trainer, module: LitKiwi) -> dict[int, EditMetrics]:
        """Compute the metrics of this process's share of the samples, by position in the list of all samples.

        Every process makes the same number of edits, and some discard the last: gathering sharded weights needs all
        processes.
        """
        assert self.items is not None and self.compute_distance_maps is not None  # noqa: PT018
        maps = self.compute_distance_maps
        compare = partial(compute_edit_metrics, compute_distance_maps=maps, device=module.device)
        indices = select_indices(get_preview_dataset(trainer), self.items)
        metrics = {}
        for round_ in range(-(-len(indices) // trainer.world_size)):
            position = round_ * trainer.world_size + trainer.global_rank
            index = indices[min(position, len(indices) - 1)]
            sample, preview = preview_sample(trainer, module, index, self.seed)
            if position >= len(indices):
                continue
            target, mask = sample.target_FHWC, sample.mask_FHW
            if index not in self.copy_metrics:
                self.copy_metrics[index] = compare(sample.source_FHWC, target, mask)
            edit = compare(preview.clips["edit"], target, mask)
            metrics[position] = EditMetrics(edit, self.copy_metrics[index])
        return metrics


def _gather_metrics(share: dict[int, EditMetrics]) -> list[EditMetrics]:
    """Gather the metrics of all processes, in the order of the samples."""
    shares = [share]
    if dist.is_available() and dist.is_initialized():
        shares *= dist.get_world_size()
        dist.all_gather_object(shares, share)
    gathered = {position: metrics for share in shares for position, metrics in share.items()}
    return [gathered[position] for position in sorted(gathered)]


def _summarize(samples: list[EditMetrics]) -> dict[str, float]:
    """Mean of each metric over the samples that have it, and the numbers of samples."""
    summary: dict[str, float] = {"edits": len(samples)}
    for region in ("inside", "outside"):
        if count := sum(f"psnr_{region}" in sample.edit for sample in samples):
            summary[f"edits_{region}"] = count
    for kind in EditMetrics._fields:
        rows: list[dict[str, float]] = [getattr(sample, kind) for sample in samples]
        for name in sorted({name for row in rows for name in row}):
            values = [row[name] for row in rows if name in row]
            summary[f"{kind}_{name}"] = sum(values) / len(values)
    return summary
