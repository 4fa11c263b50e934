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

from dataclasses import dataclass
from functools import lru_cache

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


def judge_edit(pair: EditPair, edited_FHWC: np.ndarray) -> Scores:
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
            wanted=f"uint8 of shape {pair.source.shape}",
        )
    item, edited = _prepare(pair), to_lab(edited_FHWC)
    compliance = _score(min(_change_made(item, edited), _freedom_from_mistakes(item, edited)))
    consistency = _score(min(_preservation(item, edited), _motion(item, edited)))
    quality = _score(_quality(item.target[..., 0], edited[..., 0]))
    return Scores(compliance=compliance, consistency=min(compliance, consistency), quality=min(compliance, quality))


@dataclass(frozen=True, kw_only=True, eq=False)
class _PreparedItem:
    """What the scores of all edits of an item need: Lab pixels FHWC, regions FHW bool.

    Args:
        source, target: the item's videos.
        mask: where the edit may show.
        regions: parts of the mask: where the target has new content, and where old content has to disappear.
        parts: where each sprite of the target is visible, and last its background.
        mistakes: for each the credit that it keeps, where it differs inside the mask, and its pixels there (PC).
    """

    source: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    regions: tuple[np.ndarray, ...]
    parts: tuple[np.ndarray, ...]
    mistakes: tuple[tuple[float, np.ndarray, np.ndarray], ...]

    @property
    def is_global(self) -> bool:
        """Whether the edit changes most of the video, so that consistency is measured everywhere."""
        return bool(self.mask.mean() > 0.5)


@lru_cache(maxsize=1)  # edits of one item are often scored in a row, and rendering its mistakes takes longest
def _prepare(pair: EditPair) -> _PreparedItem:
    mistakes = []
    for kind, edit in pair.edit.mistakes(pair.scene):
        mistaken = pair.render_edit(edit)
        differs = pair.mask & (mistaken != pair.target).any(axis=-1)
        mistakes.append((0.5 if kind in MINOR_MISTAKES else 0.25, differs, to_lab(mistaken[differs])))
    drawing = draw(pair.edit.apply(pair.scene), *pair.source.shape[:3])
    return _PreparedItem(
        source=to_lab(pair.source),
        target=to_lab(pair.target),
        mask=pair.mask,
        regions=(pair.new_mask, pair.mask & ~pair.new_mask),
        parts=tuple(visible > 0.5 for visible in (*drawing.sprites, drawing.background)),
        mistakes=tuple(mistakes),
    )


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
    least = 1.0
    for credit, differs, mistaken in item.mistakes:
        likeness = _likeness_to_target(item.target[differs], edited[differs], mistaken)
        least = min(least, credit + (1.0 - credit) * likeness)
        counts_F = differs.sum(axis=(1, 2))
        ends_F = counts_F.cumsum()
        for frame in np.flatnonzero(counts_F > MIN_FRAME_SHARE * counts_F.mean()):
            region = differs[frame]
            mistaken_frame = mistaken[ends_F[frame] - counts_F[frame] : ends_F[frame]]
            likeness = _likeness_to_target(item.target[frame][region], edited[frame][region], mistaken_frame)
            least = min(least, 0.5 + 0.5 * likeness)
    return least


def _likeness_to_target(target: np.ndarray, edited: np.ndarray, mistaken: np.ndarray, min_pixels: float = 1) -> float:
    """0 where pixels (PC) look like the mistake, 1 where they look like the target.

    Also 1 where mistake and target differ visibly in fewer than `min_pixels`.
    """
    visible = _distance(target, mistaken) > 8.0
    if visible.sum() < min_pixels:
        return 1.0
    step = (target - mistaken)[visible]
    position = float(((edited - mistaken)[visible] * step).sum() / np.square(step).sum())
    return min(1.0, max(0.0, (position - 0.25) / 0.4))


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
    region = np.ones_like(mask) if item.is_global else ~mask
    error = _distance(edited, target)
    fine = float((_credit(error / 18.0) if mask.all() else _credit(error[~mask] / 15.0)).mean())
    sizes = [size for size in (mask.sum(), (~mask).sum(), MIN_VISIBLE * mask.size) if size]
    # In a global edit a slight tint does not count as an object.
    off = _area_off(edited, target, region, 15.0 if item.is_global else 4.0)
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
    """1 if all parts move as in the target; 0 where one stands still, stops or starts halfway, or goes at half speed or
    backwards."""
    frames = np.arange(len(item.target))
    middle = len(frames) // 2
    still = [np.full_like(frames, frame) for frame in np.unique(np.linspace(0, frames[-1], 9).round().astype(int))]
    wrong = [frames[::-1], np.minimum(frames, middle), np.maximum(frames, middle), frames // 2]
    outside = np.ones_like(item.mask) if item.is_global else ~item.mask
    least = 1.0
    for part in item.parts:
        for order in (*still, *wrong):
            region = (part | part[order]) & outside
            pixels = (item.target[region], edited[region], item.target[order][region])
            least = min(least, _likeness_to_target(*pixels, min_pixels=MIN_VISIBLE * item.mask[0].size))
    return least


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
