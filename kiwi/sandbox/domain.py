"""The domain of models that were trained in the sandbox alone: a description of it and its vocabulary."""

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
"""The training data of such a model in words, to follow "the model was trained on", without a full stop."""

MAX_INSTRUCTION_WORDS = 20
"""Approximate length of the longest instructions of the sandbox."""

_OTHER_WORDS = "striped dotted shape black white colours gradient from to on an a and the"
"""Words of instructions that are neither in WORDINGS nor names of places, motions, shapes, textures or colours."""


def unknown_words(text: str) -> list[str]:
    """List the words of a text that no instruction of the sandbox contains, in order and without repetition.

    Numbers and punctuation are ignored.
    """
    return [word for word in dict.fromkeys(_split_words(text)) if word not in _VOCABULARY]


def _split_words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


_VOCABULARY = {
    word
    for text in (
        *(re.sub(r"\{\w+\}", " ", wording) for wordings in WORDINGS.values() for wording in wordings),
        *(*PLACES, *MOTIONS, *SHAPES, *PATTERNS, *TEXTURES, *SPRITE_COLOURS, *BACKGROUND_COLOURS),
        _OTHER_WORDS,
    )
    for word in _split_words(text)
}
