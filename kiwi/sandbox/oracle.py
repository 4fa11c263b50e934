"""The oracle: three scores of an edit, 1 to 5 each, computed from the exact target instead of by a judge.

They correspond to the three scores of a benchmark's rubric. Each is 1 + 4 clip(x, 0, 1), with x as defined below; the
second and third are capped by the first, because an unedited video is trivially consistent. All are continuous and fall
as the edit degrades. dE is the distance in CIELAB (about 2 is just noticeable, black to white is 100), and
s(d) = exp(-d^2).

Compliance, the minimum of
    change    share / 0.8, where the share of the change that was made is (S(edit) - S(source)) / (1 - S(source)). S(v)
              is the mean of s(dE(v, target) / t) with t = clip(0.3 dE(source, target), 8, 18), weighted by
              min(max(dE(source, target), dE(v, target)), 40). The share is the smallest of those over the mask, over
              pixels with new content, and over pixels whose old content must disappear; a region below 35% of the mask
              is interpolated linearly towards the share over the mask. It is at most 0.4 + the share in any one frame
              and, for a style, in any object or the background: one unedited frame or object leaves at most half.
    remains   1 - 2 A / (size of the mask), where A is the area of the mask with a wrong colour (threshold 6), such as
              the remains of a removed object.
    mistakes  c + (1 - c) u for every version of the edit with one known mistake, which is rendered like the target. The
              edit is projected onto the line from the mistake (p = 0) to the target (p = 1), by least squares over the
              pixels where these differ by dE > 8, and u = clip((p - 0.25) / 0.4, 0, 1). An edit that shows the mistake
              keeps c = 1/2 (a wrong pattern or motion, or any mistake in a single frame) or c = 1/4 (other mistakes).
Consistency, the minimum of
    fine      (m - 0.3) / 0.5, where m is the mean of s(dE(edit, target) / 15) outside the mask; for an edit of all
              pixels (a style), the mean of s(dE(edit, target) / 18) everywhere.
    coarse    1 - A / min(size of the mask, size of its complement if any, 5% of the video). A is measured
              outside the mask (threshold 4), or everywhere if the mask covers more than half of the video (threshold
              15). Vanished and additional objects count, soft edges do not.
    motion    u as above against the target's frames reordered so that they repeat one frame (nine are tried), stop or
              start halfway, run at half speed or run backwards; for each sprite and the background, in that part of the
              region of `coarse` that it covers before or after reordering. A reordering counts if it differs from the
              target by dE > 8 in as many pixels as 5% of a frame.
Quality
    s(n / 9) s(f / 7) / 0.85, from the edit's lightness minus the target's: n is the RMS of its difference from its own
    Gaussian blur of 1.5 pixels (noise, lost detail), f that of its difference between successive frames (flicker).

A is the sum of 1 - s(max(0, shift - threshold) / 10) over a region, where `shift` is the length of the mean Lab
difference of edit and target over those pixels of the region that lie in a box of 2 floor(short side / 16) + 1 pixels.
A single frame counts if its mask (or mistake) is larger than 30% of the mean over frames, an object if it covers more
than 5% of the video. Objects and the background cover the pixels of which they show in more than half.

Shapes: F frames, H height, W width, C = 3 colours, P selected pixels of the video.
"""

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

COMPLETE_SHARE = 0.8
"""Share of the change from which an edit counts as complete; reconstruction by a good autoencoder preserves more."""

FULL_WEIGHT_REGION_SHARE = 0.35
"""A region with at least this share of the mask is scored by its own share of the change alone."""

MIN_FRAME_SHARE = 0.3
"""A frame is scored by itself if its mask (or mistake) is larger than this share of the mean over frames."""

MIN_VISIBLE_SHARE = 0.05
"""Share of a frame that the smallest visible object covers."""

MINOR_MISTAKES = ("pattern", "motion")
"""Mistakes with which an edit keeps half of its credit; with all others it keeps a quarter."""

MISTAKE_PROJECTION, TARGET_PROJECTION = 0.25, 0.65
"""On the line from a mistake (0) to the target (1), an edit counts as the mistake up to the first projection and as the
target from the second."""


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
    """Score an edit of a pair's source. Raises InputError unless it is uint8 of the source's shape."""
    if edited_FHWC.shape != pair.source.shape or edited_FHWC.dtype != np.uint8:
        got, expected = f"{edited_FHWC.dtype} of shape {edited_FHWC.shape}", f"uint8 of shape {pair.source.shape}"
        problem = f"the edit of {pair.id} does not match its source"
        raise InputError(problem, code="invalid-pixels", got=got, expected=expected)
    item, edited = _prepare(pair), to_lab(edited_FHWC)
    compliance = _to_score(min(_score_change(item, edited), _score_mistakes(item, edited)))
    consistency = _to_score(min(_score_preservation(item, edited), _score_motion(item, edited)))
    quality = _to_score(_score_quality(item.target[..., 0], edited[..., 0]))
    return Scores(compliance=compliance, consistency=min(compliance, consistency), quality=min(compliance, quality))


class _WrongRendering(NamedTuple):
    """A wrong version of the target, at the pixels where it visibly differs from the target.

    Args:
        pixels: indices into the flattened video (P).
        colours: Lab colours of the wrong version (PC).
        direction: Lab colours of the target minus `colours` (PC).
        squared_norm: sum of the squares of `direction`.
    """

    pixels: np.ndarray
    colours: np.ndarray
    direction: np.ndarray
    squared_norm: np.float32

    def likeness_to_target(self, edited: np.ndarray) -> float:
        """0 if an edit (FHWC) looks like the wrong version, 1 if it looks like the target."""
        offset = edited.reshape(-1, edited.shape[-1])[self.pixels] - self.colours
        projection = float((offset * self.direction).sum() / self.squared_norm)
        return min(1.0, max(0.0, (projection - MISTAKE_PROJECTION) / (TARGET_PROJECTION - MISTAKE_PROJECTION)))


@dataclass(frozen=True, kw_only=True, eq=False)
class _PreparedItem:
    """What the scores of all edits of an item need: Lab pixels FHWC, regions FHW bool.

    Args:
        source, target: videos of the item.
        mask: where the edit may show.
        regions: the two regions of the mask: with new content, and where only old content must disappear.
        layers: where each sprite of the target is visible, and last where the background is.
        mistakes: renderings of mistakes, in the whole video and in single frames, each with the credit it leaves.
        motions: renderings of the layers in wrong motion, outside the edit.
    """

    source: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    regions: tuple[np.ndarray, ...]
    layers: tuple[np.ndarray, ...]
    mistakes: tuple[tuple[float, _WrongRendering], ...]
    motions: tuple[_WrongRendering, ...]


@lru_cache(maxsize=1)  # edits of one item are often scored in a row, and rendering its mistakes takes longest
def _prepare(pair: EditPair) -> _PreparedItem:
    target = to_lab(pair.target)
    drawing = draw(pair.edit.apply(pair.scene), *pair.source.shape[:3])
    layers = tuple(mask > 0.5 for mask in (*drawing.sprite_masks, drawing.background_mask))
    return _PreparedItem(
        source=to_lab(pair.source),
        target=target,
        mask=pair.mask,
        regions=(pair.new_mask, pair.mask & ~pair.new_mask),
        layers=layers,
        mistakes=tuple(_render_mistakes(pair, target)),
        motions=tuple(_render_wrong_motions(target, layers, _find_preserved_region(pair.mask))),
    )


def _render_mistakes(pair: EditPair, target: np.ndarray) -> Iterator[tuple[float, _WrongRendering]]:
    frame_size = target.shape[1] * target.shape[2]
    for kind, edit in pair.edit.mistakes(pair.scene):
        video = pair.render_edit(edit)
        difference_FHW = pair.mask & (video != pair.target).any(axis=-1)
        rendering = _compare(target, to_lab(video[difference_FHW]), difference_FHW)
        counts_F = difference_FHW.sum(axis=(1, 2))
        if len(rendering.pixels):
            yield 0.5 if kind in MINOR_MISTAKES else 0.25, rendering
        for frame in np.flatnonzero(counts_F > MIN_FRAME_SHARE * counts_F.mean()):
            start, end = np.searchsorted(rendering.pixels, (frame * frame_size, (frame + 1) * frame_size))
            if start < end:
                pixels, colours, direction = (values[start:end] for values in rendering[:3])
                yield 0.5, _WrongRendering(pixels, colours, direction, np.square(direction).sum())


def _render_wrong_motions(
    target: np.ndarray, layers: tuple[np.ndarray, ...], region_FHW: np.ndarray
) -> Iterator[_WrongRendering]:
    """Each layer standing still, backwards, stopping or starting halfway and at half speed, where that is visible."""
    frames = np.arange(len(target))
    middle = len(frames) // 2
    still = [np.full_like(frames, frame) for frame in np.unique(np.linspace(0, frames[-1], 9).round().astype(int))]
    moving = [frames[::-1], np.minimum(frames, middle), np.maximum(frames, middle), frames // 2]
    for layer in layers:
        for order in (*still, *moving):
            layer_region = (layer | layer[order]) & region_FHW
            rendering = _compare(target, target[order][layer_region], layer_region)
            if len(rendering.pixels) >= MIN_VISIBLE_SHARE * layer_region[0].size:
                yield rendering


def _compare(target: np.ndarray, wrong_PC: np.ndarray, region_FHW: np.ndarray) -> _WrongRendering:
    """Compare the target with a wrong version of a region of it."""
    target_PC = target[region_FHW]
    is_visible = _distance(target_PC, wrong_PC) > 8.0
    direction = (target_PC - wrong_PC)[is_visible]
    pixels = np.flatnonzero(region_FHW)[is_visible]
    return _WrongRendering(pixels, wrong_PC[is_visible], direction, np.square(direction).sum())


def _find_preserved_region(mask_FHW: np.ndarray) -> np.ndarray:
    """Where consistency is measured: outside the mask, or everywhere if the edit changes most of the video."""
    return np.ones_like(mask_FHW) if mask_FHW.mean() > 0.5 else ~mask_FHW


def _to_score(value: float) -> float:
    return 1.0 + 4.0 * min(1.0, max(0.0, value))


def _score_change(item: _PreparedItem, edited: np.ndarray) -> float:
    """Share of the change that was made, relative to COMPLETE_SHARE and without the remains of old content."""

    def share(region_FHW: np.ndarray, frames: slice = slice(None)) -> float:
        return _measure_change_share(item.source[frames], item.target[frames], edited[frames], region_FHW[frames])

    mask = item.mask
    mask_share = lowest_share = share(mask)
    for region in item.regions:
        # The smaller a region is, the less evidence it has, and the less it counts.
        weight = min(1.0, float(region.sum() / (FULL_WEIGHT_REGION_SHARE * mask.sum())))
        if weight > 0:
            lowest_share = min(lowest_share, mask_share + weight * (share(region) - mask_share))
    sizes_F = mask.sum(axis=(1, 2))
    for frame in np.flatnonzero(sizes_F > MIN_FRAME_SHARE * sizes_F.mean()):
        lowest_share = min(lowest_share, COMPLETE_SHARE / 2 + share(mask, slice(frame, frame + 1)))
    for layer in item.layers if mask.all() else ():
        if layer.mean() > MIN_VISIBLE_SHARE:
            lowest_share = min(lowest_share, COMPLETE_SHARE / 2 + share(layer))
    # Remains of the old object and missing parts of the new one have another colour than the target.
    wrong_area = _map_colour_deviation(edited, item.target, mask, 6.0).sum()
    return min(lowest_share / COMPLETE_SHARE, 1.0 - 2.0 * float(wrong_area / mask.sum()))


def _score_mistakes(item: _PreparedItem, edited: np.ndarray) -> float:
    """Credit (0 to 1) left by the mistakes that an edit shows; 1 without any."""
    remaining = (credit + (1.0 - credit) * mistake.likeness_to_target(edited) for credit, mistake in item.mistakes)
    return min(remaining, default=1.0)


def _measure_change_share(source: np.ndarray, target: np.ndarray, edited: np.ndarray, region_FHW: np.ndarray) -> float:
    """Share of the change from source to target that was made in a region."""
    change = _distance(source, target)[region_FHW]
    tolerance = np.clip(0.3 * change, 8.0, 18.0)

    def mean_similarity(video: np.ndarray) -> float:
        error = _distance(video, target)[region_FHW]
        weight = np.minimum(np.maximum(change, error), 40.0)
        return float((weight * _similarity(error / tolerance)).sum() / max(weight.sum(), 1e-6))

    unedited = mean_similarity(source)
    return float((mean_similarity(edited) - unedited) / (1.0 - unedited))


def _score_preservation(item: _PreparedItem, edited: np.ndarray) -> float:
    """1 if the rest of the video is unchanged and nothing was added to it."""
    mask, target = item.mask, item.target
    region = _find_preserved_region(mask)
    error = _distance(edited, target)
    fine = float((_similarity(error / 18.0) if mask.all() else _similarity(error[~mask] / 15.0)).mean())
    sizes = [size for size in (mask.sum(), (~mask).sum(), MIN_VISIBLE_SHARE * mask.size) if size]
    # In a global edit a slight tint does not count as an object.
    wrong_area = _map_colour_deviation(edited, target, region, 15.0 if mask.mean() > 0.5 else 4.0).sum()
    return min((fine - 0.3) / 0.5, float(1.0 - wrong_area / min(sizes)))


def _map_colour_deviation(
    edited: np.ndarray, target: np.ndarray, region_FHW: np.ndarray, threshold: float
) -> np.ndarray:
    """How clearly each pixel of a region lies in an area with a wrong colour, 0 to 1 (FHW).

    Low-passed over the region alone, so that nothing leaks over its border; distances below `threshold` do not count.
    """
    box = 2 * (min(region_FHW.shape[1:]) // 16) + 1
    region_share = uniform_filter(region_FHW.astype(np.float32), (0, box, box))
    colour_shift = uniform_filter((edited - target) * region_FHW[..., None], (0, box, box, 0))
    distance = np.where(region_FHW, np.linalg.norm(colour_shift, axis=-1) / np.maximum(region_share, 1e-6), 0.0)
    return 1.0 - _similarity(np.maximum(0.0, distance - threshold) / 10.0)


def _score_motion(item: _PreparedItem, edited: np.ndarray) -> float:
    """1 if all layers move as in the target, 0 if one visibly moves in a wrong way."""
    return min((motion.likeness_to_target(edited) for motion in item.motions), default=1.0)


def _score_quality(target_FHW: np.ndarray, edited_FHW: np.ndarray) -> float:
    residual = edited_FHW - target_FHW
    noise = residual - gaussian_filter(residual, (0, 1.5, 1.5))
    flicker = np.diff(residual, axis=0)
    return float(_similarity(_rms(noise) / 9.0) * _similarity(_rms(flicker) / 7.0) / 0.85)


def _similarity(scaled_distance: np.ndarray | float) -> np.ndarray:
    return np.exp(-np.square(scaled_distance))


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(a - b).sum(axis=-1))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean())) if values.size else 0.0
