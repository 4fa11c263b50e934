"""The language of the sandbox: names of objects, places and backgrounds, and several wordings of every edit.

An expression that refers to a sprite matches no other sprite of the scene. It names the colour, pattern or shape where
these are unique, and otherwise also the place in the first frame.
"""

import re

from kiwi.sandbox.drawing import PATTERNS, SHAPES, TEXTURES
from kiwi.sandbox.palette import BACKGROUND_COLOURS, SPRITE_COLOURS
from kiwi.sandbox.sampling import ItemSampler
from kiwi.sandbox.world import Appearance, Background, Scene, Sprite, Vector

_PATTERN_WORDS = {"plain": "", "stripes": "striped", "dots": "dotted"}
_STYLE_WORDS = {
    "grey": "in black and white",
    "sepia": "in sepia",
    "invert": "with inverted colours",
    "posterise": "in a few flat colours",
}

# Wordings by kind of edit. {object} refers to an object of the scene, {new_object} introduces one. Training never uses
# the last HELD_OUT_WORDINGS of a kind (kiwi.sandbox.sampling).
WORDINGS: dict[str, tuple[str, ...]] = {
    "recolour": (
        "Make {object} {colour}.",
        "Change the colour of {object} to {colour}.",
        "Paint {object} {colour}.",
        "{object} should be {colour}.",
        "Give {object} the colour {colour}.",
        "Let {object} turn {colour}.",
    ),
    "reshape": (
        "Turn {object} into a {shape}.",
        "Change the shape of {object} to a {shape}.",
        "Make {object} a {shape} and keep its colour.",
        "{object} should become a {shape}.",
        "Reshape {object} into a {shape}.",
        "Let {object} take the form of a {shape}.",
    ),
    "transform": (
        "Turn {object} into {new_object}.",
        "Replace {object} with {new_object}.",
        "Swap {object} for {new_object}.",
        "Put {new_object} in place of {object}.",
        "Exchange {object} for {new_object}.",
        "Where {object} is, show {new_object} instead.",
    ),
    "remove": (
        "Remove {object}.",
        "Take {object} out of the scene.",
        "Erase {object} from the video.",
        "Delete {object}.",
        "{object} should disappear.",
        "Get rid of {object}.",
        "Let {object} vanish from the clip.",
    ),
    "add": (
        "Add {new_object} {place}{motion}.",
        "Put {new_object} {place}{motion}.",
        "Insert {new_object} {place}{motion}.",
        "Place {new_object} {place}{motion}.",
        "Bring in {new_object} {place}{motion}.",
        "Let there be {new_object} {place}{motion}.",
    ),
    "background": (
        "Change the background to {background}.",
        "Replace the background with {background}.",
        "Make the background {background}.",
        "Show the same scene over {background}.",
        "Use {background} as the background.",
        "Let everything happen in front of {background}.",
    ),
    "grey": (
        "Make the video black and white.",
        "Turn the whole clip grey.",
        "Take the colour out of the video.",
        "Show everything in shades of grey.",
        "Desaturate the whole video.",
        "Let the clip lose all its colour.",
    ),
    "sepia": (
        "Give the video a sepia tone.",
        "Turn the whole clip sepia.",
        "Make the video look like an old sepia film.",
        "Show everything in sepia.",
        "Tint the whole video sepia.",
        "Let the clip look brown and faded like sepia.",
    ),
    "invert": (
        "Invert the colours of the video.",
        "Turn the clip into a colour negative.",
        "Make the whole video a negative.",
        "Show every colour as its opposite.",
        "Flip all colours into their negatives.",
        "Let the clip look like a photographic negative.",
    ),
    "posterise": (
        "Posterise the video.",
        "Reduce the whole clip to a few flat colours.",
        "Make the video look like a poster with few colours.",
        "Show everything in a posterised style.",
        "Apply a posterised look to the video.",
        "Let the clip keep only a few flat colours.",
    ),
    "subject_reference": (
        "Replace {object} with the object in the reference image.",
        "Swap {object} for the object shown in the reference picture.",
        "Turn {object} into the object from the reference image.",
        "Put the object of the reference picture in place of {object}.",
        "Exchange {object} for what the reference image shows.",
        "Where {object} is, show the object from the reference picture instead.",
    ),
    "background_reference": (
        "Change the background to the one in the reference image.",
        "Use the reference picture as the background.",
        "Replace the background with the reference image.",
        "Show the same scene over the background of the reference picture.",
        "Put the reference image behind everything.",
        "Let everything happen in front of the reference picture.",
    ),
}

# Start of an added sprite by the name of its place. Captions and questions use the same names.
PLACES: dict[str, Vector] = {
    "in the top left": (-0.5, -0.5),
    "at the top": (0.0, -0.5),
    "in the top right": (0.5, -0.5),
    "on the left": (-0.5, 0.0),
    "in the middle": (0.0, 0.0),
    "on the right": (0.5, 0.0),
    "in the bottom left": (-0.5, 0.5),
    "at the bottom": (0.0, 0.5),
    "in the bottom right": (0.5, 0.5),
}

# Velocity of an added sprite by the words for its motion.
MOTIONS: dict[str, Vector] = {
    "": (0.0, 0.0),
    ", moving left": (-0.04, 0.0),
    ", moving right": (0.04, 0.0),
    ", moving up": (0.0, -0.04),
    ", moving down": (0.0, 0.04),
}

# Minimum distance along an axis at which a place on that axis distinguishes two sprites of the same appearance.
MIN_SIDE_DISTANCE = 0.3

_SHAPES, _COLOURS, _TEXTURES = (", ".join(names) for names in (SHAPES, SPRITE_COLOURS, TEXTURES))

DOMAIN_DESCRIPTION = (
    f"rendered scenes of one to three shapes ({_SHAPES}; {_COLOURS}; plain, striped or dotted) over {_TEXTURES} "
    "backgrounds; edits that recolour, reshape, replace, add or remove a shape, change the background, or make the "
    "video grey, sepia, inverted or posterised; and references that show such a shape or background, never real videos"
)
"""Ending of the sentence "The model was trained on ..." about a model that was trained in the sandbox only."""

MAX_INSTRUCTION_WORDS = 20
"""Approximate length of the longest instructions of the sandbox."""


def sample_instruction(kind: str, sampler: ItemSampler, **slots: str) -> str:
    """Sample a wording of an edit: `sample_instruction("recolour", sampler, object="the red ring", colour="blue")`."""
    return _capitalise(sampler.choose_wording(WORDINGS[kind]).format(**slots))


def full_name(appearance: Appearance) -> str:
    """Name a sprite by pattern, colour and shape, without an article: "striped red circle"."""
    return _join(_PATTERN_WORDS[appearance.pattern], appearance.colour, appearance.shape)


def with_article(noun: str) -> str:
    """Put the indefinite article before a noun: "an orange star"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def nearest_place(position: Vector) -> str:
    """Name the place in PLACES that is nearest to a position (x, y), each -1..1: "in the top left"."""
    return min(PLACES, key=lambda words: (PLACES[words][0] - position[0]) ** 2 + (PLACES[words][1] - position[1]) ** 2)


def describe_background(background: Background) -> str:
    """Describe a background completely: "beige dots on brown", "a gradient from navy to white"."""
    if background.texture == "plain":
        return f"plain {background.base_colour}"
    if background.texture == "gradient":
        return f"a gradient from {background.base_colour} to {background.pattern_colour}"
    return f"{background.pattern_colour} {background.texture} on {background.base_colour}"


def caption_scene(scene: Scene, style: str = "") -> str:
    """Describe a video in a sentence: "A red circle in the top left over plain grey, in sepia."."""
    front_to_back = reversed(scene.sprites)
    objects = [
        f"{with_article(full_name(sprite.appearance))} {nearest_place(sprite.start)}" for sprite in front_to_back
    ]
    object_list = " and ".join([", ".join(objects[:-1]), objects[-1]] if len(objects) > 1 else objects)
    background = describe_background(scene.background)
    sentence = f"{object_list} over {background}" if objects else background
    return _capitalise(f"{sentence}, {_STYLE_WORDS[style]}." if style else f"{sentence}.")


def sample_referring_expression(scene: Scene, index: int, sampler: ItemSampler) -> str:
    """Sample an expression that matches only sprite `index`: "the red ring", "the star on the left"."""
    return "the " + sampler.choose(referring_expressions(scene, index))


def referring_expressions(scene: Scene, index: int) -> list[str]:
    """List all expressions that match only sprite `index`, without the article.

    They name the appearance where that is unique, and otherwise also the place among sprites of the same appearance.
    """
    sprite, appearance = scene.sprites[index], scene.sprites[index].appearance
    other_sprites = scene.sprites[:index] + scene.sprites[index + 1 :]
    others = [other.appearance for other in other_sprites]
    uniqueness = {
        _join(appearance.colour, appearance.shape): all(other.kind != appearance.kind for other in others),
        full_name(appearance): appearance not in others,
        appearance.shape: all(other.shape != appearance.shape for other in others),
        _join(appearance.colour, "shape"): all(other.colour != appearance.colour for other in others),
    }
    if unique := [noun for noun, is_unique in uniqueness.items() if is_unique]:
        return unique
    twins = [other for other in other_sprites if other.appearance == appearance]
    expressions = [f"{full_name(appearance)} {side}" for side in _distinguishing_sides(sprite, twins)]
    assert expressions, f"nothing distinguishes the {full_name(appearance)} from the others"
    return expressions


def _distinguishing_sides(sprite: Sprite, twins: list[Sprite]) -> list[str]:
    """Name the sides on which the sprite is in the first frame, seen from all sprites of the same appearance."""
    dx = [sprite.start[0] - twin.start[0] for twin in twins]
    dy = [sprite.start[1] - twin.start[1] for twin in twins]
    sides = {"on the right": dx, "at the bottom": dy, "on the left": [-d for d in dx], "at the top": [-d for d in dy]}
    return [words for words, distances in sides.items() if min(distances) >= MIN_SIDE_DISTANCE]


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
        "striped dotted shape black white colours gradient from to on an a and the",  # in neither of the above
    )
    for word in _split_words(text)
}


def _capitalise(text: str) -> str:
    return text[0].upper() + text[1:]


def _join(*words: str) -> str:
    return " ".join(word for word in words if word)
