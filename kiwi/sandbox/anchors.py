"""The oracle held to account: edits whose scores are known beforehand, and damage in steps.

Anchors are what every judge has to get right before its scores of real edits say anything; the damages show that each
score falls when an edit gets worse. Fixed before any editor was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.ndimage import gaussian_filter

from kiwi.sandbox.oracle import Scores, judge
from kiwi.sandbox.pairs import EditPair

Pixels = np.ndarray
"""Frames, FHWC uint8."""

Edits = Callable[[EditPair], Iterator[Pixels]]
"""From an item to edits of its source, or none if this cannot be done with it."""

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
"""Of damage: 0 is the exact target."""


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """Edits of one sort, and what their overall score must be.

    Args:
        edits: makes them.
        least, most: bounds.
        of_mean: they bound the mean over all edits, not each edit.
    """

    edits: Edits
    least: float = 1.0
    most: float = 5.0
    of_mean: bool = False

    @property
    def wanted(self) -> str:
        """The bounds in words."""
        of = "mean " if self.of_mean else ""
        if self.least == self.most:
            return f"{of}{self.least:g}"
        return f"{of}{self.least:g} or more" if self.most == 5.0 else f"{of}{self.most:g} or less"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What an anchor's edits scored.

    Args:
        items, edits: how many; an item can be edited wrongly in several ways, or in none.
        overall: of each edit.
        holds: the bounds were kept; nothing holds of no edit.
    """

    items: int
    overall: tuple[float, ...]
    holds: bool


def blend(pair: EditPair, share: float) -> Pixels:
    """The target with a share of the source in it."""
    return _uint8(share * pair.source.astype(np.float32) + (1 - share) * pair.target)


def _with(wrong: str, pair: EditPair) -> Iterator[Pixels]:
    edits = (pair.under(edit) for what, edit in pair.edit.mistakes(pair.scene) if what == wrong)
    return (edited for edited in edits if (edited != pair.target).any())  # a single frame shows no wrong motion


def _late(pair: EditPair) -> Iterator[Pixels]:
    if len(pair.source) > 1:
        yield np.concatenate([pair.source[:1], pair.target[1:]])


MISTAKES = {
    **dict.fromkeys(("thing", "colour", "shape", "texture", "style", "place"), 2.0),
    **dict.fromkeys(("pattern", "motion"), 3.0),
}
"""What can be wrong in an edit (`Edit.mistakes`), and the most that it is then worth: half if the right thing, of the
right colour and shape, stands in the right place."""


ANCHORS: dict[str, Anchor] = {
    "exact target": Anchor(edits=lambda pair: iter([pair.target]), least=5.0),
    "unedited copy": Anchor(edits=lambda pair: iter([pair.source]), most=1.0),
    "half of source and target": Anchor(edits=lambda pair: iter([blend(pair, 0.5)]), most=3.0),
    "first frame unedited": Anchor(edits=_late, most=3.0),
    **{f"wrong {wrong}": Anchor(edits=partial(_with, wrong), most=most) for wrong, most in MISTAKES.items()},
}
"""What needs no model. The round trip of the target through an autoencoder (`round_trip`) is one more."""


def round_trip(decoded: Callable[[EditPair], Pixels]) -> Anchor:
    """What an autoencoder leaves of an item's target: no editor that works in its latents can do better."""
    return Anchor(edits=lambda pair: iter([decoded(pair)]), least=4.5, of_mean=True)


def measure(pairs: Sequence[EditPair], anchor: Anchor) -> Found:
    """Judge an anchor's edits of some items."""
    scores = [[judge(pair, edited).overall for edited in anchor.edits(pair)] for pair in pairs]
    overall = tuple(score for edits in scores for score in edits)
    bounded = (float(np.mean(overall)),) if anchor.of_mean and overall else overall
    holds = bool(bounded) and anchor.least - 1e-6 <= min(bounded) and max(bounded) <= anchor.most + 1e-6
    return Found(items=sum(map(bool, scores)), overall=overall, holds=holds)


def _noise(pair: EditPair, level: float) -> Pixels:
    return _uint8(pair.target + 90 * level * np.random.default_rng(0).standard_normal(pair.target.shape))


def _blur(pair: EditPair, level: float) -> Pixels:
    return _uint8(gaussian_filter(pair.target.astype(float), (0, 3 * level, 3 * level, 0)))


DAMAGES: dict[str, Callable[[EditPair, float], Pixels]] = {
    "share of the source left in": blend,
    "noise (1: 90 grey levels)": _noise,
    "blur (1: 3 pixels)": _blur,
    "darkness (1: black)": lambda pair, level: _uint8((1 - level) * pair.target),
}
"""From an item and a level between 0 and 1 to the spoilt target."""


def damaged(pair: EditPair) -> dict[tuple[str, float], Scores]:
    """Scores of an item's target, spoilt: by damage and level."""
    return {(name, level): judge(pair, damage(pair, level)) for name, damage in DAMAGES.items() for level in LEVELS}


def _uint8(values: np.ndarray) -> Pixels:
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)
