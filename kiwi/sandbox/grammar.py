"""The language of the world: names for what a scene holds, and several wordings for every edit.

An expression that refers to a sprite fits that sprite alone: by its colour, pattern and shape where they
tell it apart, by its place in the first frame where they do not.
"""

from __future__ import annotations

from kiwi.sandbox.sampling import Dice
from kiwi.sandbox.world import Background, Looks, Scene, Sprite, Vector

_PATTERN_WORDS = {"plain": "", "stripes": "striped", "dots": "dotted"}
_STYLE_WORDS = {
    "grey": "in black and white",
    "sepia": "in sepia",
    "invert": "with inverted colours",
    "posterise": "in a few flat colours",
}

# Wordings by kind of edit; {it} is an expression that refers, {a} one that introduces. Training never says the last
# NEW_WORDINGS of a kind (kiwi.sandbox.sampling).
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

# Where an added sprite can be told to go, by words; the same words name places in captions and questions.
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

# Two sprites that look alike stand at least this far apart along the axis by which they are told apart.
CLEARLY_APART = 0.3


def phrase(kind: str, given: Dice, **slots: str) -> str:
    """One wording of an edit, as a sentence: `phrase("recolour", given, it="the red ring", colour="blue")`."""
    return _sentence(given.wording(WORDINGS[kind]).format(**slots))


def name(looks: Looks) -> str:
    """Looks in full, without an article: "striped red circle"."""
    return _words(_PATTERN_WORDS[looks.pattern], looks.colour, looks.shape)


def a(noun: str) -> str:
    """The noun with its indefinite article: "an orange star"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def place(position: Vector) -> str:
    """The words of PLACES for a position (x, y), each -1..1: "in the top left"."""
    return min(PLACES, key=lambda words: (PLACES[words][0] - position[0]) ** 2 + (PLACES[words][1] - position[1]) ** 2)


def describe(background: Background) -> str:
    """A background in words that fix its picture: "beige dots on brown", "a gradient from navy to white"."""
    ground, figure = background.ground, background.figure
    if background.texture == "plain":
        return f"plain {ground}"
    if background.texture == "gradient":
        return f"a gradient from {ground} to {figure}"
    return f"{figure} {background.texture} on {ground}"


def caption(scene: Scene, style: str = "") -> str:
    """What a video shows, as a sentence: "A red circle in the top left over plain grey, in sepia."."""
    things = [f"{a(name(sprite.looks))} {place(sprite.start)}" for sprite in reversed(scene.sprites)]
    listed = " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)
    sentence = f"{listed} over {describe(scene.background)}" if things else describe(scene.background)
    return _sentence(f"{sentence}, {_STYLE_WORDS[style]}." if style else f"{sentence}.")


def refer(scene: Scene, index: int, given: Dice) -> str:
    """An expression that fits sprite `index` of the scene and no other: "the red ring", "the star on the left"."""
    return "the " + given.pick(references(scene, index))


def references(scene: Scene, index: int) -> list[str]:
    """All expressions that fit sprite `index` alone, without the article.

    By looks where they tell it apart; otherwise by the side on which it stands among those that look alike.
    """
    sprite, looks = scene.sprites[index], scene.sprites[index].looks
    others = [other.looks for i, other in enumerate(scene.sprites) if i != index]
    nouns = {
        _words(looks.colour, looks.shape): all((o.colour, o.shape) != (looks.colour, looks.shape) for o in others),
        name(looks): looks not in others,
        looks.shape: all(o.shape != looks.shape for o in others),
        _words(looks.colour, "shape"): all(o.colour != looks.colour for o in others),
    }
    unique = [noun for noun, fits in nouns.items() if fits]
    if unique:
        return unique
    alike = [other for i, other in enumerate(scene.sprites) if i != index and other.looks == looks]
    sided = [f"{name(looks)} {side}" for side in _sides(sprite, alike)]
    assert sided, f"nothing tells the {name(looks)} from the others"
    return sided


def _sides(sprite: Sprite, alike: list[Sprite]) -> list[str]:
    """Sides of the first frame on which the sprite clearly stands, seen from every one that looks like it."""
    dx = [sprite.start[0] - other.start[0] for other in alike]
    dy = [sprite.start[1] - other.start[1] for other in alike]
    sides = {"on the right": dx, "at the bottom": dy, "on the left": [-d for d in dx], "at the top": [-d for d in dy]}
    return [words for words, distances in sides.items() if min(distances) >= CLEARLY_APART]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _words(*words: str) -> str:
    return " ".join(word for word in words if word)
