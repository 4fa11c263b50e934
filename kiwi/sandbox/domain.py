"""What a model that was trained in the sandbox alone can know, in words, and which words it never heard."""

from __future__ import annotations

import re

from kiwi.sandbox.drawing import PATTERNS, SHAPES, TEXTURES
from kiwi.sandbox.grammar import MOTIONS, PLACES, WORDINGS
from kiwi.sandbox.palette import BACKGROUND_COLOURS, SPRITE_COLOURS

_SHAPES, _COLOURS, _TEXTURES = (", ".join(names) for names in (SHAPES, SPRITE_COLOURS, TEXTURES))

DOMAIN = (
    f"rendered scenes of one to three shapes ({_SHAPES}; {_COLOURS}; plain, striped or dotted) over {_TEXTURES} "
    "backgrounds: to recolour, reshape, replace, add and remove shapes, to change backgrounds, to turn everything "
    "grey, sepia, inverted or posterised; references that show such a shape or background. Never a real video"
)
"""One sentence without its full stop."""

MAX_INSTRUCTION_WORDS = 20
"""Words of the longest instructions, about."""

_ELSE = "striped dotted shape black white colours gradient from to on an a and the"


def unknown_words(text: str) -> list[str]:
    """The words of an instruction that no instruction of the sandbox has, in order, each once.

    Numbers and signs are passed by.
    """
    return [word for word in dict.fromkeys(_words(text)) if word not in _KNOWN]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


_KNOWN = {
    word
    for said in (
        *(re.sub(r"\{\w+\}", " ", wording) for wordings in WORDINGS.values() for wording in wordings),
        *(*PLACES, *MOTIONS, *SHAPES, *PATTERNS, *TEXTURES, *SPRITE_COLOURS, *BACKGROUND_COLOURS),
        _ELSE,
    )
    for word in _words(said)
}
