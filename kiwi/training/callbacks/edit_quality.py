"""What validation tells about finished edits: each is made by the previews' path and held against its target."""

from __future__ import annotations

from typing import NamedTuple

import lightning as L
import torch.distributed as dist

from kiwi.errors import InputError
from kiwi.evaluation.fidelity import edit_metrics
from kiwi.evaluation.perceptual import NoPerceptual, PerceptualMaps, PerceptualSpec
from kiwi.training.callbacks.previews import chosen, edited, looked_at
from kiwi.training.modules.editor import LitKiwi


class Measured(NamedTuple):
    """What `measure` told of one sample: of the edit, and of the source left as it is."""

    edit: dict[str, float]
    copy: dict[str, float]


class EditQuality(L.Callback):
    """At each validation edits fixed samples and measures them against their targets: val/edit_psnr, val/edit_ssim.

    Beside each number stands the same of the plain copy of the source (val/copy_psnr), which an edit must beat to be
    worth anything. Where manifests have masks, edit_psnr_inside and edit_psnr_outside tell the edit and what it should
    have left alone. `val/edits` counts the samples; `val/edits_inside` and `val/edits_outside` those that have the
    side. PSNR is in dB and at most 60 a frame. Training of an autoencoder is not concerned: it tells its own val/psnr.

    Args:
        items: samples of the validation set, from every kind of task; null makes no edits.
        seed: of the starting noise; where it is the previews', what both show is edited once.
        perceptual: a measure by a pretrained network, such as Lpips.
    """

    def __init__(
        self,
        items: int | None = 8,
        seed: int = 0,
        perceptual: PerceptualSpec = NoPerceptual(),  # noqa: B008  (frozen)
    ) -> None:
        if items is not None and items < 1:
            raise InputError("quality.items must be at least 1", got=items, fix="null turns the measurements off")
        self.items, self.seed, self.perceptual = items, seed, perceptual
        self.copies: dict[int, dict[str, float]] = {}
        self.distances: PerceptualMaps | None = None

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Load what the measures need, so that what is missing is told before any work."""
        self.copies, self.distances = {}, None
        if self.items is None or not isinstance(module, LitKiwi):
            return
        sides = [side for bucket in looked_at(trainer).buckets for side in (bucket.height, bucket.width)]
        if min(sides) < self.perceptual.min_side:
            raise InputError(
                f"the frames are too small for {type(self.perceptual).__name__}",
                got=f"{min(sides)} pixels",
                wanted=f"{self.perceptual.min_side} at least",
                fix="--quality.perceptual=NoPerceptual, or larger videos",
            )
        self.distances = self.perceptual.build(trainer.strategy.root_device)

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Edit, measure and log; the same numbers in every process."""
        if self.distances is None or trainer.sanity_checking:
            return
        assert isinstance(module, LitKiwi)
        for name, value in _summary(_gathered(self._measured(trainer, module, self.distances))).items():
            module.log(f"val/{name}", value, rank_zero_only=True)

    def _measured(self, trainer: L.Trainer, module: LitKiwi, distances: PerceptualMaps) -> dict[int, Measured]:
        """This process's share of the samples, by their place among all.

        Every process makes as many edits, whose results may be left out: sharded weights are gathered by all together.
        """
        assert self.items is not None
        indices = chosen(looked_at(trainer), self.items)
        found = {}
        for turn in range(-(-len(indices) // trainer.world_size)):
            place = turn * trainer.world_size + trainer.global_rank
            index = indices[min(place, len(indices) - 1)]
            sample, clips, _ = edited(trainer, module, index, self.seed)
            if place >= len(indices):
                continue
            wanted, mask = sample.target_FHWC, sample.mask_FHW
            if index not in self.copies:
                self.copies[index] = edit_metrics(sample.source_FHWC, wanted, mask, distances, module.device)
            edit = edit_metrics(clips["edit"], wanted, mask, distances, module.device)
            found[place] = Measured(edit, self.copies[index])
        return found


def _gathered(mine: dict[int, Measured]) -> list[Measured]:
    """What all processes measured, in the order of the samples."""
    shares = [mine]
    if dist.is_available() and dist.is_initialized():
        shares *= dist.get_world_size()
        dist.all_gather_object(shares, mine)
    together = {place: measured for share in shares for place, measured in share.items()}
    return [together[place] for place in sorted(together)]


def _summary(measured: list[Measured]) -> dict[str, float]:
    """Means over the samples that have a number, and how many there are."""
    found: dict[str, float] = {"edits": len(measured)}
    for side in ("inside", "outside"):
        if count := sum(f"psnr_{side}" in one.edit for one in measured):
            found[f"edits_{side}"] = count
    for kind in Measured._fields:
        rows: list[dict[str, float]] = [getattr(one, kind) for one in measured]
        for name in sorted({name for row in rows for name in row}):
            values = [row[name] for row in rows if name in row]
            found[f"{kind}_{name}"] = sum(values) / len(values)
    return found
