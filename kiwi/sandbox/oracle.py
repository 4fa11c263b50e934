"""The oracle: three scores of an edit, 1 to 5 each, computed from the exact target instead of asked of a judge.

The scores stand where a benchmark's rubric has its three, the first about whether the edit was made; the other two
never exceed it, because a failed edit is easily consistent. All are continuous, fall with damage, and are functions of
colour differences dE in CIELAB (about 2 is just noticeable, black to white is 100):

    compliance   inside the mask: the share of the change that was made, the lesser of where something new is to be
                 seen and where something old is to be gone. A pixel counts by how much it had to change or is wrong,
                 and is right by exp(-(dE(edit, target) / t)^2), t = 0.3 dE(source, target) between 8 and 18; the share
                 that the source has already is taken off. 0 is 1, and 0.8 or more is 5. Low-passed areas of another
                 colour, such as what is left of a thing, take off twice their share of the mask. A frame, or a thing
                 under a style, without the edit leaves half.
                 An edit with one thing wrong is worth half (a pattern, a motion, or anything in one frame) or a quarter
                 (all else): each such mistake is rendered, and the edit placed by least squares between it (0) and the
                 target (1); 0.65 is right enough.
    consistency  outside the mask, or everywhere if that is less than half of the frame; the least of three. Fine:
                 pixels outside like the source's (of styles: like the target's, everywhere). Coarse: low-passed areas
                 that differ, against the size of the edit or of the smallest thing: what vanished or came in counts, a
                 soft edge does not. Motion: each sprite and the background is placed, likewise, between moving as it
                 should and standing still, stopping, being slow or going backwards.
    quality      noise, blur and flicker: the edit's lightness less the target's, high-passed in space and differenced
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

DONE = 0.8
"""Share of a change from which on it counts as made: what a good autoencoder leaves of it is more."""

SLIVER = 0.35
"""Share of the mask from which on a part of it decides alone."""

FLEETING = 0.3
"""Share of its usual area below which the mask of a frame says nothing about that frame."""

SEEN = 0.05
"""Share of a frame that the smallest thing to be seen covers."""

DETAILS = ("pattern", "motion")
"""Mistakes that leave half of an edit's worth; of any other a quarter is left."""

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
"""What the published benchmarks call the three scores, by category."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What an edit is worth, 1 to 5 each; the second and third are at most the first."""

    compliance: float
    consistency: float
    quality: float

    @property
    def overall(self) -> float:
        """Their mean."""
        return (self.compliance + self.consistency + self.quality) / 3


def judge_edit(pair: EditPair, edited_FHWC: np.ndarray) -> Scores:
    """Score an edit of a pair's source.

    Args:
        pair: the item, with its exact target and mask.
        edited_FHWC: uint8, of the source's shape.

    Raises:
        InputError: another shape or type.
    """
    if edited_FHWC.shape != pair.source.shape or edited_FHWC.dtype != np.uint8:
        raise InputError(
            f"the edit of {pair.id} cannot be judged",
            got=f"{edited_FHWC.dtype} of shape {edited_FHWC.shape}",
            wanted=f"uint8 of shape {pair.source.shape}",
        )
    known, edited = _known(pair), to_lab(edited_FHWC)
    first = _score(min(_made(known, edited), _told_from_mistakes(known, edited)))
    second = _score(min(_kept(known, edited), _moving(known, edited)))
    third = _score(_quality(known.target[..., 0], edited[..., 0]))
    return Scores(compliance=first, consistency=min(first, second), quality=min(first, third))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Known:
    """What is known of an item before any edit is judged: Lab pixels FHWC, regions FHW bool.

    Args:
        source, target: the item's videos.
        mask: where the edit may show.
        regions: of the mask: where something new is to be seen, where something old is to be gone.
        parts: where each sprite of the target is seen, and last its background.
        mistakes: what is left of the worth after each, where it differs inside the mask, and its pixels there (PC).
    """

    source: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    regions: tuple[np.ndarray, ...]
    parts: tuple[np.ndarray, ...]
    mistakes: tuple[tuple[float, np.ndarray, np.ndarray], ...]

    @property
    def wide(self) -> bool:
        """Whether the edit is of nearly everything, and consistency about all of it."""
        return bool(self.mask.mean() > 0.5)


@lru_cache(maxsize=1)  # several edits of one item are often judged in a row, and drawing its mistakes takes longest
def _known(pair: EditPair) -> _Known:
    mistakes = []
    for wrong, edit in pair.edit.mistakes(pair.scene):
        mistaken = pair.render_edit(edit)
        differs = pair.mask & (mistaken != pair.target).any(axis=-1)
        mistakes.append((0.5 if wrong in DETAILS else 0.25, differs, to_lab(mistaken[differs])))
    drawn = draw(pair.edit.apply(pair.scene), *pair.source.shape[:3])
    return _Known(
        source=to_lab(pair.source),
        target=to_lab(pair.target),
        mask=pair.mask,
        regions=(pair.new_mask, pair.mask & ~pair.new_mask),
        parts=tuple(visible > 0.5 for visible in (*drawn.sprites, drawn.background)),
        mistakes=tuple(mistakes),
    )


def _score(share: float) -> float:
    return 1.0 + 4.0 * min(1.0, max(0.0, share))


def _made(known: _Known, edited: np.ndarray) -> float:
    """The share of the change that was made, of DONE."""

    def made(region_FHW: np.ndarray, frames: slice = slice(None)) -> float:
        return _compliance(known.source[frames], known.target[frames], edited[frames], region_FHW[frames])

    mask = known.mask
    whole = least = made(mask)
    for region in known.regions:
        # A sliver says little: it counts the less, the smaller it is.
        certain = min(1.0, float(region.sum() / (SLIVER * mask.sum())))
        if certain > 0:
            least = min(least, whole + certain * (made(region) - whole))
    sizes_F = mask.sum(axis=(1, 2))
    for frame in np.flatnonzero(sizes_F > FLEETING * sizes_F.mean()):
        least = min(least, DONE / 2 + made(mask, slice(frame, frame + 1)))
    for part in known.parts if mask.all() else ():
        if part.mean() > SEEN:
            least = min(least, DONE / 2 + made(part))
    # What is left of the old thing, or lacks of the new: areas of the mask that are another colour.
    off = _area_off(edited, known.target, mask, 6.0)
    return min(least / DONE, 1.0 - 2.0 * float(off.sum() / mask.sum()))


def _told_from_mistakes(known: _Known, edited: np.ndarray) -> float:
    """What is left of 1 if the edit shows one of the mistakes that its words or its reference exclude."""
    least = 1.0
    for left, differs, mistaken in known.mistakes:
        right = _right_enough(known.target[differs], edited[differs], mistaken)
        least = min(least, left + (1.0 - left) * right)
        counts_F = differs.sum(axis=(1, 2))
        ends_F = counts_F.cumsum()
        for frame in np.flatnonzero(counts_F > FLEETING * counts_F.mean()):
            there = differs[frame]
            of_frame = mistaken[ends_F[frame] - counts_F[frame] : ends_F[frame]]
            right = _right_enough(known.target[frame][there], edited[frame][there], of_frame)
            least = min(least, 0.5 + 0.5 * right)
    return least


def _right_enough(target: np.ndarray, edited: np.ndarray, mistaken: np.ndarray, least: float = 1) -> float:
    """0 where pixels (PC) look like the mistake, 1 where they look like the target.

    Also 1 where fewer than `least` of them can be told apart.
    """
    seen = _distance(target, mistaken) > 8.0
    if seen.sum() < least:
        return 1.0
    step = (target - mistaken)[seen]
    nearness = float(((edited - mistaken)[seen] * step).sum() / np.square(step).sum())
    return min(1.0, max(0.0, (nearness - 0.25) / 0.4))


def _compliance(source: np.ndarray, target: np.ndarray, edited: np.ndarray, region_FHW: np.ndarray) -> float:
    change = _distance(source, target)[region_FHW]
    tolerance = np.clip(0.3 * change, 8.0, 18.0)

    def right(video: np.ndarray) -> float:
        wrong = _distance(video, target)[region_FHW]
        weight = np.minimum(np.maximum(change, wrong), 40.0)
        return float((weight * _credit(wrong / tolerance)).sum() / max(weight.sum(), 1e-6))

    before = right(source)
    return float((right(edited) - before) / (1.0 - before))


def _kept(known: _Known, edited: np.ndarray) -> float:
    """Whether what was not to change did not, and nothing came in."""
    mask, target = known.mask, known.target
    region = np.ones_like(mask) if known.wide else ~mask
    wrong = _distance(edited, target)
    fine = float((_credit(wrong / 18.0) if mask.all() else _credit(wrong[~mask] / 15.0)).mean())
    sizes = [size for size in (mask.sum(), (~mask).sum(), SEEN * mask.size) if size]
    # Of everything, a slight tint is no thing.
    off = _area_off(edited, target, region, 15.0 if known.wide else 4.0)
    coarse = 1.0 - off.sum() / min(sizes)
    return min((fine - 0.3) / 0.5, float(coarse))


def _area_off(edited: np.ndarray, target: np.ndarray, region_FHW: np.ndarray, unseen: float) -> np.ndarray:
    """How far areas of a region are another colour, 0 to 1 by pixel: low-passed over the region alone, so that nothing
    leaks over its edge; distances of `unseen` do not count."""
    side = 2 * (min(region_FHW.shape[1:]) // 16) + 1
    held = uniform_filter(region_FHW.astype(np.float32), (0, side, side))
    drift = uniform_filter((edited - target) * region_FHW[..., None], (0, side, side, 0))
    drift_FHW = np.where(region_FHW, np.linalg.norm(drift, axis=-1) / np.maximum(held, 1e-6), 0.0)
    return 1.0 - _credit(np.maximum(0.0, drift_FHW - unseen) / 10.0)


def _moving(known: _Known, edited: np.ndarray) -> float:
    """0 where a part stands still, stops or starts halfway, goes at half speed or backwards; 1 if all move right."""
    frames = np.arange(len(known.target))
    middle = len(frames) // 2
    still = [np.full_like(frames, frame) for frame in np.unique(np.linspace(0, frames[-1], 9).round().astype(int))]
    wrong = [frames[::-1], np.minimum(frames, middle), np.maximum(frames, middle), frames // 2]
    kept = np.ones_like(known.mask) if known.wide else ~known.mask
    least = 1.0
    for part in known.parts:
        for order in (*still, *wrong):
            near = (part | part[order]) & kept
            pixels = (known.target[near], edited[near], known.target[order][near])
            least = min(least, _right_enough(*pixels, least=SEEN * known.mask[0].size))
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
