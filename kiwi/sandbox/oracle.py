"""The oracle: three scores of an edit, 1 to 5 each, computed from the exact target instead of asked of a judge.

The scores stand where a benchmark's rubric has its three, the first about whether the edit was made; the other two
never exceed it, because a failed edit is easily consistent. All are continuous, fall with damage, and are functions of
colour differences dE in CIELAB (about 2 is just noticeable, black to white is 100):

    compliance   inside the mask: the share of the change that was made, the lesser of where something new is to be
                 seen and where something old is to be gone. A pixel counts by how much it had to change or is wrong,
                 and is right by exp(-(dE(edit, target) / t)^2), t = 0.3 dE(source, target) between 8 and 18; the share
                 that the source has already is taken off. 0 is 1, and 0.8 or more is 5.
    consistency  outside the mask: the lesser of two shares. Fine: pixels like the source's. Coarse: low-passed areas
                 that differ, against the size of the edit or of the outside, the smaller one: a thing that vanished
                 counts, a soft edge does not. Where there is no outside (styles), fine on the target, everywhere. Its
                 motion is placed between the right one and standing still or running backwards.
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

DONE = 0.8
"""Share of a change from which on it counts as made: what a good autoencoder leaves of it is more."""

SLIVER = 0.35
"""Share of the mask from which on a part of it decides alone."""

FLEETING = 0.3
"""Share of its usual area below which the mask of a frame says nothing about that frame."""

DETAILS = ("pattern", "motion")
"""Mistakes that leave half of an edit's worth; of any other a quarter is left."""

_OPENVE = ("Instruction Compliance", "Consistency & Detail Fidelity", "Visual Quality & Stability")
NAMES: dict[str, tuple[str, str, str]] = {
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


def judge(pair: EditPair, edited_FHWC: np.ndarray) -> Scores:
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
    source, target, edited = (to_lab(video) for video in (pair.source, pair.target, edited_FHWC))
    first = _score(min(_made(source, target, edited, pair) / DONE, _told_from_mistakes(target, edited, pair)))
    second = _score(_consistency(source, target, edited, pair.mask))
    third = _score(_quality(target[..., 0], edited[..., 0]))
    return Scores(compliance=first, consistency=min(first, second), quality=min(first, third))


def _score(share: float) -> float:
    return 1.0 + 4.0 * min(1.0, max(0.0, share))


def _made(source: np.ndarray, target: np.ndarray, edited: np.ndarray, pair: EditPair) -> float:
    whole = least = _compliance(source, target, edited, pair.mask)
    for region in (pair.new, pair.mask & ~pair.new):
        # A sliver says little: it counts the less, the smaller it is.
        certain = min(1.0, float(region.sum() / (SLIVER * pair.mask.sum())))
        if certain > 0:
            least = min(least, whole + certain * (_compliance(source, target, edited, region) - whole))
    sizes_F = pair.mask.sum(axis=(1, 2))
    for frame in np.flatnonzero(sizes_F > FLEETING * sizes_F.mean()):
        one = np.s_[frame : frame + 1]
        least = min(least, DONE / 2 + _compliance(source[one], target[one], edited[one], pair.mask[one]))
    return least


def _told_from_mistakes(target: np.ndarray, edited: np.ndarray, pair: EditPair) -> float:
    """What is left of 1 if the edit shows one of the mistakes that its words or its reference exclude."""
    least = 1.0
    for left, differs, mistaken in _mistakes(pair):
        least = min(least, left + (1.0 - left) * _right_enough(target[differs], edited[differs], mistaken))
    return least


@lru_cache(maxsize=1)  # several edits of one item are often judged in a row, and drawing its mistakes takes longest
def _mistakes(pair: EditPair) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """What is left after each mistake, where in the mask it differs (FHW bool), and its pixels there (PC)."""
    found = []
    for wrong, edit in pair.edit.mistakes(pair.scene):
        mistaken = pair.under(edit)
        differs = pair.mask & (mistaken != pair.target).any(axis=-1)
        found.append((0.5 if wrong in DETAILS else 0.25, differs, to_lab(mistaken[differs])))
    return found


def _right_enough(target: np.ndarray, edited: np.ndarray, mistaken: np.ndarray) -> float:
    """0 where pixels (PC) look like the mistake, 1 where they look like the target; 1 if these cannot be told apart."""
    seen = _distance(target, mistaken) > 8.0
    if not seen.any():
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


def _consistency(source: np.ndarray, target: np.ndarray, edited: np.ndarray, mask_FHW: np.ndarray) -> float:
    outside = ~mask_FHW
    if not outside.any():
        fine = (_credit(_distance(edited, target) / 18.0).mean() - 0.3) / 0.5
        return min(float(fine), _moves(target, edited, mask_FHW))
    fine = (_credit(_distance(edited, source)[outside] / 15.0).mean() - 0.3) / 0.5
    # Low-passed over the outside alone, so that what is done inside the mask does not leak out.
    side = 2 * (min(mask_FHW.shape[1:]) // 16) + 1
    held = uniform_filter(outside.astype(np.float32), (0, side, side))
    drift = _distance(_smooth(edited * outside[..., None], side), _smooth(source * outside[..., None], side))
    drift = np.where(outside, drift / np.maximum(held, 1e-6), 0.0)
    damage = 1.0 - _credit(np.maximum(0.0, drift - 4.0) / 10.0)
    coarse = 1.0 - damage[outside].sum() / min(mask_FHW.sum(), outside.sum())
    return min(float(fine), float(coarse), _moves(target, edited, outside))


def _moves(target: np.ndarray, edited: np.ndarray, region_FHW: np.ndarray) -> float:
    """0 where the video stands still or runs backwards, 1 where it moves as it should."""
    still, reverse = np.broadcast_to(target[:1], target.shape), target[::-1]
    return min(_right_enough(target[region_FHW], edited[region_FHW], other[region_FHW]) for other in (still, reverse))


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


def _smooth(video_FHWC: np.ndarray, side: int) -> np.ndarray:
    return uniform_filter(video_FHWC, (0, side, side, 0))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean())) if values.size else 0.0
