"""The language of the sandbox: names of objects, places and backgrounds, and several wordings for every edit.

An expression that refers to a sprite matches no other sprite of the scene: it names colour, pattern and shape where
these are unique, and the place in the first frame where they are not.
"""

from __future__ import annotations

from kiwi.sandbox.sampling import ItemSampler
from kiwi.sandbox.world import Appearance, Background, Scene, Sprite, Vector

_PATTERN_WORDS = {"plain": "", "stripes": "striped", "dots": "dotted"}
_STYLE_WORDS = {
    "grey": "in black and white",
    "sepia": "in sepia",
    "invert": "with inverted colours",
    "posterise": "in a few flat colours",
}

# Wordings by kind of edit; {it} refers to an object, {a} introduces a new one. Training never uses the last
# HELD_OUT_WORDINGS of a kind (kiwi.sandbox.sampling).
WORDINGS: dict[str, tuple[str, ...]] = {
    "recolour": (
        "Make {it} {colour}.",
        "Change the colour of {it} to {colour}.",
        "Paint {it} {colour}.",
        "{it} should be {colour}.",
        "Give {it} the colour {colour}.",
        "Let {it} turn {colour}.",
    ),
    "reshape": (
        "Turn {it} into a {shape}.",
        "Change the shape of {it} to a {shape}.",
        "Make {it} a {shape} and keep its colour.",
        "{it} should become a {shape}.",
        "Reshape {it} into a {shape}.",
        "Let {it} take the form of a {shape}.",
    ),
    "transform": (
        "Turn {it} into {a}.",
        "Replace {it} with {a}.",
        "Swap {it} for {a}.",
        "Put {a} in place of {it}.",
        "Exchange {it} for {a}.",
        "Where {it} is, show {a} instead.",
    ),
    "remove": (
        "Remove {it}.",
        "Take {it} out of the scene.",
        "Erase {it} from the video.",
        "Delete {it}.",
        "{it} should disappear.",
        "Get rid of {it}.",
        "Let {it} vanish from the clip.",
    ),
    "add": (
        "Add {a} {place}{motion}.",
        "Put {a} {place}{motion}.",
        "Insert {a} {place}{motion}.",
        "Place {a} {place}{motion}.",
        "Bring in {a} {place}{motion}.",
        "Let there be {a} {place}{motion}.",
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
        "Replace {it} with the object in the reference image.",
        "Swap {it} for the object shown in the reference picture.",
        "Turn {it} into the object from the reference image.",
        "Put the object of the reference picture in place of {it}.",
        "Exchange {it} for what the reference image shows.",
        "Where {it} is, show the object from the reference picture instead.",
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

# Places of added sprites by name; the same names are used in captions and questions.
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

MOTIONS: dict[str, Vector] = {
    "": (0.0, 0.0),
    ", moving left": (-0.04, 0.0),
    ", moving right": (0.04, 0.0),
    ", moving up": (0.0, -0.04),
    ", moving down": (0.0, 0.04),
}

# Two sprites of the same appearance are at least this far apart along the axis that distinguishes them.
CLEARLY_APART = 0.3


def phrase(kind: str, sampler: ItemSampler, **slots: str) -> str:
    """Sample a wording of an edit: `phrase("recolour", sampler, it="the red ring", colour="blue")`."""
    return _sentence(sampler.choose_wording(WORDINGS[kind]).format(**slots))


def name(appearance: Appearance) -> str:
    """Appearance in full, without an article: "striped red circle"."""
    return _join(_PATTERN_WORDS[appearance.pattern], appearance.colour, appearance.shape)


def with_article(noun: str) -> str:
    """The noun with its indefinite article: "an orange star"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def place(position: Vector) -> str:
    """The name in PLACES nearest to a position (x, y), each -1..1: "in the top left"."""
    return min(PLACES, key=lambda words: (PLACES[words][0] - position[0]) ** 2 + (PLACES[words][1] - position[1]) ** 2)


def describe(background: Background) -> str:
    """A complete description of a background: "beige dots on brown", "a gradient from navy to white"."""
    ground, figure = background.ground, background.figure
    if background.texture == "plain":
        return f"plain {ground}"
    if background.texture == "gradient":
        return f"a gradient from {ground} to {figure}"
    return f"{figure} {background.texture} on {ground}"


def caption(scene: Scene, style: str = "") -> str:
    """Describe a video in a sentence: "A red circle in the top left over plain grey, in sepia."."""
    things = [f"{with_article(name(sprite.appearance))} {place(sprite.start)}" for sprite in reversed(scene.sprites)]
    listed = " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)
    sentence = f"{listed} over {describe(scene.background)}" if things else describe(scene.background)
    return _sentence(f"{sentence}, {_STYLE_WORDS[style]}." if style else f"{sentence}.")


def referring_expression(scene: Scene, index: int, sampler: ItemSampler) -> str:
    """Sample an expression that matches only sprite `index`: "the red ring", "the star on the left"."""
    return "the " + sampler.choose(referring_expressions(scene, index))


def referring_expressions(scene: Scene, index: int) -> list[str]:
    """All expressions that match only sprite `index`, without the article.

    They name the appearance where that is unique, otherwise the side among the sprites with the same appearance.
    """
    sprite, appearance = scene.sprites[index], scene.sprites[index].appearance
    others = [other.appearance for i, other in enumerate(scene.sprites) if i != index]
    nouns = {
        _join(appearance.colour, appearance.shape): all(other.kind != appearance.kind for other in others),
        name(appearance): appearance not in others,
        appearance.shape: all(other.shape != appearance.shape for other in others),
        _join(appearance.colour, "shape"): all(other.colour != appearance.colour for other in others),
    }
    unique = [noun for noun, is_unique in nouns.items() if is_unique]
    if unique:
        return unique
    alike = [other for i, other in enumerate(scene.sprites) if i != index and other.appearance == appearance]
    sided = [f"{name(appearance)} {side}" for side in _sides(sprite, alike)]
    assert sided, f"nothing distinguishes the {name(appearance)} from the others"
    return sided


def _sides(sprite: Sprite, alike: list[Sprite]) -> list[str]:
    """Sides of the first frame on which the sprite clearly is, relative to all sprites of the same appearance."""
    dx = [sprite.start[0] - other.start[0] for other in alike]
    dy = [sprite.start[1] - other.start[1] for other in alike]
    sides = {"on the right": dx, "at the bottom": dy, "on the left": [-d for d in dx], "at the top": [-d for d in dy]}
    return [words for words, distances in sides.items() if min(distances) >= CLEARLY_APART]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _join(*words: str) -> str:
    return " ".join(word for word in words if word)
