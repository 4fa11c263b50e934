"""Checks of the oracle: anchors (edits whose scores are known in advance) and targets degraded in steps.

A judge has to score the anchors correctly before its scores of real edits mean anything. The degradations show that
each score falls as an edit gets worse. All were fixed before any editor was trained.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from scipy.ndimage import gaussian_filter

from kiwi.sandbox.oracle import Scores, score_edit
from kiwi.sandbox.pairs import EditPair
from kiwi.sandbox.palette import round_to_uint8
from kiwi.sandbox.world import Pixels

DEGRADATION_LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
"""Levels of degradation: 0 is the exact target."""


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """Edits of one kind with bounds on their overall scores.

    Args:
        make_edits: function that yields edits of an item's source; none if the item does not allow such edits.
        minimum, maximum: inclusive bounds on the overall score.
        on_mean: whether the bounds apply to the mean over all edits instead of to every edit.
    """

    make_edits: Callable[[EditPair], Iterator[Pixels]]
    minimum: float = 1.0
    maximum: float = 5.0
    on_mean: bool = False

    @property
    def bounds(self) -> str:
        """The bounds in words."""
        mean = "mean " if self.on_mean else ""
        if self.minimum == self.maximum:
            return f"{mean}{self.minimum:g}"
        return f"{mean}{self.minimum:g} or more" if self.maximum == 5.0 else f"{mean}{self.maximum:g} or less"


@dataclass(frozen=True, kw_only=True)
class AnchorResult:
    """Scores of the edits of an anchor.

    Args:
        items: number of items that allow such an edit; an item may allow several.
        scores: overall score of each edit.
        passed: whether the scores are within the bounds; False if there are no edits.
    """

    items: int
    scores: tuple[float, ...]
    passed: bool


def blend(pair: EditPair, share: float) -> Pixels:
    """Blend a share of the source into the target."""
    return round_to_uint8(share * pair.source.astype(np.float32) + (1 - share) * pair.target)


def _render_mistakes(mistake: str, pair: EditPair) -> Iterator[Pixels]:
    videos = (pair.render_edit(edit) for kind, edit in pair.edit.mistakes(pair.scene) if kind == mistake)
    return (video for video in videos if (video != pair.target).any())  # wrong motion is invisible in a single frame


def _restore_first_frame(pair: EditPair) -> Iterator[Pixels]:
    if len(pair.source) > 1:
        yield np.concatenate([pair.source[:1], pair.target[1:]])


MISTAKE_LIMITS = {
    **dict.fromkeys(("object", "colour", "shape", "texture", "style", "place"), 2.0),
    **dict.fromkeys(("pattern", "motion"), 3.0),
}
"""Maximum overall score of an edit with one mistake, by kind of mistake (`Edit.mistakes`). An edit with the correct
object, colour, shape and place keeps half of its credit."""

ANCHORS: dict[str, Anchor] = {
    "exact target": Anchor(make_edits=lambda pair: iter([pair.target]), minimum=5.0),
    "unedited copy": Anchor(make_edits=lambda pair: iter([pair.source]), maximum=1.0),
    "half of source and target": Anchor(make_edits=lambda pair: iter([blend(pair, 0.5)]), maximum=3.0),
    "first frame unedited": Anchor(make_edits=_restore_first_frame, maximum=3.0),
    **{
        f"wrong {mistake}": Anchor(make_edits=partial(_render_mistakes, mistake), maximum=limit)
        for mistake, limit in MISTAKE_LIMITS.items()
    },
}
"""Anchors that need no model; `reconstruction_anchor` adds one for an autoencoder."""


def reconstruction_anchor(reconstruct: Callable[[EditPair], Pixels]) -> Anchor:
    """The target after encoding and decoding by an autoencoder, an upper bound for editors in its latent space."""
    return Anchor(make_edits=lambda pair: iter([reconstruct(pair)]), minimum=4.5, on_mean=True)


def check_anchor(pairs: Sequence[EditPair], anchor: Anchor) -> AnchorResult:
    """Score the edits of an anchor for the given items and compare the scores with its bounds."""
    item_scores = [[score_edit(pair, edited).overall for edited in anchor.make_edits(pair)] for pair in pairs]
    scores = tuple(chain.from_iterable(item_scores))
    values = (float(np.mean(scores)),) if anchor.on_mean and scores else scores
    passed = bool(values) and anchor.minimum - 1e-6 <= min(values) and max(values) <= anchor.maximum + 1e-6
    return AnchorResult(items=sum(map(bool, item_scores)), scores=scores, passed=passed)


def _add_noise(pair: EditPair, level: float) -> Pixels:
    return round_to_uint8(pair.target + 90 * level * np.random.default_rng(0).standard_normal(pair.target.shape))


def _blur(pair: EditPair, level: float) -> Pixels:
    return round_to_uint8(gaussian_filter(pair.target.astype(float), (0, 3 * level, 3 * level, 0)))


DEGRADATIONS: dict[str, Callable[[EditPair, float], Pixels]] = {
    "share of the source left in": blend,
    "noise (1: 90 grey levels)": _add_noise,
    "blur (1: 3 pixels)": _blur,
    "darkness (1: black)": lambda pair, level: round_to_uint8((1 - level) * pair.target),
}
"""Functions from an item and a level (0 to 1) to the degraded target, by the title of their plots."""


def score_degraded(pair: EditPair) -> dict[tuple[str, float], Scores]:
    """Score the target of an item after every degradation; the scores by name and level of degradation."""
    return {
        (name, level): score_edit(pair, degrade(pair, level))
        for name, degrade in DEGRADATIONS.items()
        for level in DEGRADATION_LEVELS
    }
