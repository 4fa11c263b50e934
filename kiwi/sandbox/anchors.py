"""The oracle held to account: edits whose scores are known beforehand, and damage in steps.

Anchors are what every judge has to get right before its scores of real edits say anything; the damages show that each
score falls when an edit gets worse. Fixed before any editor was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter

from kiwi.sandbox.edits import AddSprite, ChangeSprite
from kiwi.sandbox.oracle import Scores, judge
from kiwi.sandbox.pairs import EditPair
from kiwi.sandbox.palette import SPRITE_COLOURS
from kiwi.sandbox.world import Scene, render

Pixels = np.ndarray
"""Frames, FHWC uint8."""

Edits = Callable[[EditPair], Iterator[Pixels]]
"""From an item to edits of its source, or none if this cannot be done with it."""

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
"""Of damage: 0 is the exact target."""

PLACES = ("in the top left", "in the bottom right")
"""Where something is put wrongly, one of them at least being wrong."""


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
        each = "on average" if self.of_mean else "each"
        if self.least == self.most:
            return f"{self.least:g} {each}"
        return f"{self.least:g} or more {each}" if self.most == 5.0 else f"{self.most:g} or less {each}"


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


def _wrong_colours(pair: EditPair) -> Iterator[Pixels]:
    if isinstance(edit := pair.edit, ChangeSprite):
        before = pair.scene.sprites[edit.index].looks
        for colour in SPRITE_COLOURS:
            if colour not in (edit.looks.colour, before.colour):
                yield _shown(pair, replace(edit, looks=replace(edit.looks, colour=colour)).apply(pair.scene))


def _wrong_places(pair: EditPair) -> Iterator[Pixels]:
    if isinstance(edit := pair.edit, AddSprite):
        for place in PLACES:
            if place != edit.place:
                yield _shown(pair, replace(edit, place=place).apply(pair.scene))


ANCHORS: dict[str, Anchor] = {
    "exact target": Anchor(edits=lambda pair: iter([pair.target]), least=5.0),
    "unedited copy": Anchor(edits=lambda pair: iter([pair.source]), most=1.0),
    "half of source and target": Anchor(edits=lambda pair: iter([blend(pair, 0.5)]), most=3.0),
    "wrong colour": Anchor(edits=_wrong_colours, most=2.0),
    "wrong place": Anchor(edits=_wrong_places, most=2.0),
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


def damaged(
    pairs: Sequence[EditPair], damages: Mapping[str, Callable[[EditPair, float], Pixels]] | None = None
) -> Iterator[tuple[str, float, list[Scores]]]:
    """Scores of every item, by damage and level."""
    for name, damage in (DAMAGES if damages is None else damages).items():
        for level in LEVELS:
            yield name, level, [judge(pair, damage(pair, level)) for pair in pairs]


def _shown(pair: EditPair, scene: Scene) -> Pixels:
    frames, height, width = pair.source.shape[:3]
    return pair.edit.stylise(render(scene, frames, height, width))


def _uint8(values: np.ndarray) -> Pixels:
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)
