"""The domain of a model that was trained in the sandbox alone: a description, and its vocabulary."""

from __future__ import annotations

import re

from kiwi.sandbox.drawing import PATTERNS, SHAPES, TEXTURES
from kiwi.sandbox.grammar import MOTIONS, PLACES, WORDINGS
from kiwi.sandbox.palette import BACKGROUND_COLOURS, SPRITE_COLOURS

_SHAPES, _COLOURS, _TEXTURES = (", ".join(names) for names in (SHAPES, SPRITE_COLOURS, TEXTURES))

DOMAIN_DESCRIPTION = (
    f"rendered scenes of one to three shapes ({_SHAPES}; {_COLOURS}; plain, striped or dotted) over {_TEXTURES} "
    "backgrounds; edits that recolour, reshape, replace, add or remove a shape, change the background, or make the "
    "video grey, sepia, inverted or posterised; and references that show such a shape or background, never real videos"
)
"""Completes "the model was trained on ..."; without the full stop."""

MAX_INSTRUCTION_WORDS = 20
"""Length of the longest instructions, approximately."""

_OTHER_WORDS = "striped dotted shape black white colours gradient from to on an a and the"


def unknown_words(text: str) -> list[str]:
    """The words of an instruction that are in no instruction of the sandbox, in order and without repetition.

    Numbers and punctuation are ignored.
    """
    return [word for word in dict.fromkeys(_words(text)) if word not in _VOCABULARY]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


_VOCABULARY = {
    word
    for text in (
        *(re.sub(r"\{\w+\}", " ", wording) for wordings in WORDINGS.values() for wording in wordings),
        *(*PLACES, *MOTIONS, *SHAPES, *PATTERNS, *TEXTURES, *SPRITE_COLOURS, *BACKGROUND_COLOURS),
        _OTHER_WORDS,
    )
    for word in _words(text)
}
