"""The oracle: three scores of an edit, 1 to 5 each, computed from the exact target instead of by a judge.

They correspond to the three scores of a benchmark's rubric. The first is about whether the edit was made and caps the
other two, because a failed edit is easily consistent. All are continuous, fall with degradation, and are functions of
colour differences dE in CIELAB (about 2 is just noticeable, black to white is 100):

    compliance   inside the mask: the share of the change that was made; the lesser of where the target has new content
                 and where old content has to disappear. A pixel's weight is how much it had to change or is wrong, and
                 its credit is exp(-(dE(edit, target) / t)^2), t = 0.3 dE(source, target) between 8 and 18; the credit
                 of the unedited source is subtracted. 0 scores 1, and 0.8 or more scores 5. Low-passed areas of another
                 colour, such as the remains of an object, subtract twice their share of the mask. A frame, or an object
                 under a style, without the edit leaves half.
                 An edit with one mistake keeps half of its credit (a pattern, a motion, or anything in one frame) or a
                 quarter (all else): each such mistake is rendered, and the edit is placed by least squares between the
                 mistake (0) and the target (1); 0.65 counts as the target.
    consistency  outside the mask, or everywhere if that is less than half of the frame; the least of three. Fine:
                 pixels outside like the source's (of styles: like the target's, everywhere). Coarse: low-passed areas
                 that differ, relative to the size of the edit or of the smallest object: vanished and new objects
                 count, soft edges do not. Motion: each sprite and the background is placed, likewise, between its right
                 motion and standing still, stopping, half speed or going backwards.
    quality      noise, blur and flicker: the edit's lightness minus the target's, high-passed in space and differenced
                 in time.

F frames, H height, W width, C = 3 colours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter

from kiwi.errors import InputError
from kiwi.sandbox.pairs import EditPair
from kiwi.sandbox.palette import to_lab
from kiwi.sandbox.world import draw

FULL_CREDIT = 0.8
"""Share of a change from which it counts as made: a good autoencoder preserves more."""

MIN_PART = 0.35
"""Share of the mask from which a part of it decides the score alone."""

MIN_FRAME_SHARE = 0.3
"""Share of its mean area below which the mask of a frame is too small to judge that frame."""

MIN_VISIBLE = 0.05
"""Share of a frame that the smallest visible object covers."""

MINOR_MISTAKES = ("pattern", "motion")
"""Mistakes that keep half of an edit's credit; all others keep a quarter."""

_OPENVE = ("Instruction Compliance", "Consistency & Detail Fidelity", "Visual Quality & Stability")
SCORE_NAMES: dict[str, tuple[str, str, str]] = {
    **dict.fromkeys(("local_change", "local_remove", "local_add", "background_change", "global_style"), _OPENVE),
    "subject_reference": (
        "Identity Consistency & Compliance",
        "Temporal Consistency & Texture Fidelity",
        "Physical Integration & Tracking",
    ),
    "background_reference": (
        "Reference Fidelity & Preservation",
        "Matting Quality & Temporal Stability",
        "Visual Harmony & Perspective",
    ),
}
"""The names of the three scores in the published benchmarks, by category."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of an edit, 1 to 5 each; the second and third are at most the first."""

    compliance: float
    consistency: float
    quality: float

    @property
    def overall(self) -> float:
        """Mean of the three scores."""
        return (self.compliance + self.consistency + self.quality) / 3


def score_edit(pair: EditPair, edited_FHWC: np.ndarray) -> Scores:
    """Score an edit of a pair's source.

    Args:
        pair: the item, with its exact target and mask.
        edited_FHWC: uint8, with the shape of the source.

    Raises:
        InputError: another shape or type.
    """
    if edited_FHWC.shape != pair.source.shape or edited_FHWC.dtype != np.uint8:
        raise InputError(
            f"the edit of {pair.id} does not match its source",
            code="invalid-pixels",
            got=f"{edited_FHWC.dtype} of shape {edited_FHWC.shape}",
            expected=f"uint8 of shape {pair.source.shape}",
        )
    item, edited = _prepare(pair), to_lab(edited_FHWC)
    compliance = _score(min(_change_made(item, edited), _freedom_from_mistakes(item, edited)))
    consistency = _score(min(_preservation(item, edited), _motion(item, edited)))
    quality = _score(_quality(item.target[..., 0], edited[..., 0]))
    return Scores(compliance=compliance, consistency=min(compliance, consistency), quality=min(compliance, quality))


class _Contrast(NamedTuple):
    """The pixels in which a wrong version of the target visibly differs from it.

    Args:
        pixels: indices into the flattened video (P).
        wrong: the wrong version (PC).
        step: the target minus the wrong version (PC).
        scale: sum of the squares of `step`.
    """

    pixels: np.ndarray
    wrong: np.ndarray
    step: np.ndarray
    scale: np.float32

    def likeness_to_target(self, edited: np.ndarray) -> float:
        """0 where an edit (FHWC) looks like the wrong version, 1 where it looks like the target."""
        offset = edited.reshape(-1, edited.shape[-1])[self.pixels] - self.wrong
        position = float((offset * self.step).sum() / self.scale)
        return min(1.0, max(0.0, (position - 0.25) / 0.4))


@dataclass(frozen=True, kw_only=True, eq=False)
class _PreparedItem:
    """What the scores of all edits of an item need: Lab pixels FHWC, regions FHW bool.

    Args:
        source, target: the item's videos.
        mask: where the edit may show.
        regions: parts of the mask: where the target has new content, and where old content has to disappear.
        parts: where each sprite of the target is visible, and last its background.
        mistakes: for each, in the whole video and in single frames, the credit that it keeps and its contrast.
        motions: contrasts of the parts outside of the edit with the same parts in wrong motion.
    """

    source: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    regions: tuple[np.ndarray, ...]
    parts: tuple[np.ndarray, ...]
    mistakes: tuple[tuple[float, _Contrast], ...]
    motions: tuple[_Contrast, ...]


@lru_cache(maxsize=1)  # edits of one item are often scored in a row, and rendering its mistakes takes longest
def _prepare(pair: EditPair) -> _PreparedItem:
    target = to_lab(pair.target)
    drawing = draw(pair.edit.apply(pair.scene), *pair.source.shape[:3])
    parts = tuple(visible > 0.5 for visible in (*drawing.sprites, drawing.background))
    return _PreparedItem(
        source=to_lab(pair.source),
        target=target,
        mask=pair.mask,
        regions=(pair.new_mask, pair.mask & ~pair.new_mask),
        parts=parts,
        mistakes=tuple(_mistake_contrasts(pair, target)),
        motions=tuple(_motion_contrasts(target, parts, _preserved_region(pair.mask))),
    )


def _mistake_contrasts(pair: EditPair, target: np.ndarray) -> Iterator[tuple[float, _Contrast]]:
    frame_size = target.shape[1] * target.shape[2]
    for kind, edit in pair.edit.mistakes(pair.scene):
        mistaken = pair.render_edit(edit)
        differs = pair.mask & (mistaken != pair.target).any(axis=-1)
        contrast = _contrast(target, to_lab(mistaken[differs]), differs)
        counts_F = differs.sum(axis=(1, 2))
        if len(contrast.pixels):
            yield 0.5 if kind in MINOR_MISTAKES else 0.25, contrast
        for frame in np.flatnonzero(counts_F > MIN_FRAME_SHARE * counts_F.mean()):
            start, end = np.searchsorted(contrast.pixels, (frame * frame_size, (frame + 1) * frame_size))
            if start < end:
                step = contrast.step[start:end]
                scale = np.square(step).sum()
                yield 0.5, _Contrast(contrast.pixels[start:end], contrast.wrong[start:end], step, scale)


def _motion_contrasts(target: np.ndarray, parts: tuple[np.ndarray, ...], region_FHW: np.ndarray) -> Iterator[_Contrast]:
    """Each part standing still, stopping or starting halfway, at half speed and backwards, where that is visible."""
    frames = np.arange(len(target))
    middle = len(frames) // 2
    still = [np.full_like(frames, frame) for frame in np.unique(np.linspace(0, frames[-1], 9).round().astype(int))]
    wrong = [frames[::-1], np.minimum(frames, middle), np.maximum(frames, middle), frames // 2]
    for part in parts:
        for order in (*still, *wrong):
            near = (part | part[order]) & region_FHW
            contrast = _contrast(target, target[order][near], near)
            if len(contrast.pixels) >= MIN_VISIBLE * near[0].size:
                yield contrast


def _contrast(target: np.ndarray, wrong_PC: np.ndarray, region_FHW: np.ndarray) -> _Contrast:
    """The contrast of the target with a wrong version of a region."""
    target_PC = target[region_FHW]
    visible = _distance(target_PC, wrong_PC) > 8.0
    step = (target_PC - wrong_PC)[visible]
    return _Contrast(np.flatnonzero(region_FHW)[visible], wrong_PC[visible], step, np.square(step).sum())


def _preserved_region(mask_FHW: np.ndarray) -> np.ndarray:
    """Where consistency is measured: outside of the mask, or everywhere if the edit changes most of the video."""
    return np.ones_like(mask_FHW) if mask_FHW.mean() > 0.5 else ~mask_FHW


def _score(share: float) -> float:
    return 1.0 + 4.0 * min(1.0, max(0.0, share))


def _change_made(item: _PreparedItem, edited: np.ndarray) -> float:
    """The share of the change that was made, relative to FULL_CREDIT."""

    def share(region_FHW: np.ndarray, frames: slice = slice(None)) -> float:
        return _change_share(item.source[frames], item.target[frames], edited[frames], region_FHW[frames])

    mask = item.mask
    whole = least = share(mask)
    for region in item.regions:
        # The smaller a region is, the less it is evidence, and the less it counts.
        weight = min(1.0, float(region.sum() / (MIN_PART * mask.sum())))
        if weight > 0:
            least = min(least, whole + weight * (share(region) - whole))
    sizes_F = mask.sum(axis=(1, 2))
    for frame in np.flatnonzero(sizes_F > MIN_FRAME_SHARE * sizes_F.mean()):
        least = min(least, FULL_CREDIT / 2 + share(mask, slice(frame, frame + 1)))
    for part in item.parts if mask.all() else ():
        if part.mean() > MIN_VISIBLE:
            least = min(least, FULL_CREDIT / 2 + share(part))
    # Remains of the old object and missing parts of the new one: areas of the mask in another colour.
    off = _area_off(edited, item.target, mask, 6.0)
    return min(least / FULL_CREDIT, 1.0 - 2.0 * float(off.sum() / mask.sum()))


def _freedom_from_mistakes(item: _PreparedItem, edited: np.ndarray) -> float:
    """The credit, of 1, that remains if the edit shows a mistake that the instruction or the reference excludes."""
    credits = (credit + (1.0 - credit) * wrong.likeness_to_target(edited) for credit, wrong in item.mistakes)
    return min(credits, default=1.0)


def _change_share(source: np.ndarray, target: np.ndarray, edited: np.ndarray, region_FHW: np.ndarray) -> float:
    change = _distance(source, target)[region_FHW]
    tolerance = np.clip(0.3 * change, 8.0, 18.0)

    def mean_credit(video: np.ndarray) -> float:
        error = _distance(video, target)[region_FHW]
        weight = np.minimum(np.maximum(change, error), 40.0)
        return float((weight * _credit(error / tolerance)).sum() / max(weight.sum(), 1e-6))

    before = mean_credit(source)
    return float((mean_credit(edited) - before) / (1.0 - before))


def _preservation(item: _PreparedItem, edited: np.ndarray) -> float:
    """Whether the rest of the video is unchanged and nothing was added."""
    mask, target = item.mask, item.target
    region = _preserved_region(mask)
    error = _distance(edited, target)
    fine = float((_credit(error / 18.0) if mask.all() else _credit(error[~mask] / 15.0)).mean())
    sizes = [size for size in (mask.sum(), (~mask).sum(), MIN_VISIBLE * mask.size) if size]
    # In a global edit a slight tint does not count as an object.
    off = _area_off(edited, target, region, 15.0 if mask.mean() > 0.5 else 4.0)
    coarse = 1.0 - off.sum() / min(sizes)
    return min((fine - 0.3) / 0.5, float(coarse))


def _area_off(edited: np.ndarray, target: np.ndarray, region_FHW: np.ndarray, threshold: float) -> np.ndarray:
    """How much areas of a region are in another colour, 0 to 1 for each pixel.

    Low-passed over the region alone, so that nothing leaks over its edge; distances below `threshold` do not count.
    """
    side = 2 * (min(region_FHW.shape[1:]) // 16) + 1
    share = uniform_filter(region_FHW.astype(np.float32), (0, side, side))
    drift = uniform_filter((edited - target) * region_FHW[..., None], (0, side, side, 0))
    drift_FHW = np.where(region_FHW, np.linalg.norm(drift, axis=-1) / np.maximum(share, 1e-6), 0.0)
    return 1.0 - _credit(np.maximum(0.0, drift_FHW - threshold) / 10.0)


def _motion(item: _PreparedItem, edited: np.ndarray) -> float:
    """1 if all parts move as in the target; 0 where one moves visibly wrong."""
    return min((wrong.likeness_to_target(edited) for wrong in item.motions), default=1.0)


def _quality(target_FHW: np.ndarray, edited_FHW: np.ndarray) -> float:
    residual = edited_FHW - target_FHW
    noise = residual - gaussian_filter(residual, (0, 1.5, 1.5))
    flicker = np.diff(residual, axis=0)
    credit = _credit(_rms(noise) / 9.0) * _credit(_rms(flicker) / 7.0)
    return float(credit / 0.85)


def _credit(distance: np.ndarray | float) -> np.ndarray:
    return np.exp(-np.square(distance))


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(a - b).sum(axis=-1))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean())) if values.size else 0.0
