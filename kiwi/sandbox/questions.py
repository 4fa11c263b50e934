"""Questions about the world and their answers: what a small reader of video learns to see, and to remember, with.

An item is a video, a question in one of several wordings, and the one right answer. What is asked can be seen in the
video (or in the picture beside it), or read in the question itself. The splits are those of the edits: training asks
neither about what it never shows nor in the last wordings of a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from string import ascii_lowercase
from typing import NamedTuple

import numpy as np

from kiwi.errors import InputError
from kiwi.sandbox import grammar
from kiwi.sandbox.edits import SubjectReference
from kiwi.sandbox.pairs import CATEGORIES, PROPOSALS
from kiwi.sandbox.sampling import Dice, dice, sample_scene
from kiwi.sandbox.world import Scene, Sprite, Vector, centres, render

WORDINGS: dict[str, tuple[str, ...]] = {
    "describe": (
        "Describe the video.",
        "What does the video show?",
        "Say what can be seen.",
        "Tell me what is in this clip.",
        "Put the whole clip into words.",
        "What is there to see?",
    ),
    "locate": (
        "Where is {it} at first?",
        "In which part of the first frame is {it}?",
        "Tell me where {it} is at the start.",
        "Find {it} in the first frame.",
        "Where does one see {it} to begin with?",
        "Point out the first place of {it}.",
    ),
    "identify": (
        "What is {place} at first?",
        "Which object is {place} at the start?",
        "Name the thing {place} of the first frame.",
        "What can be seen {place} of the first frame?",
        "Say what stands {place} to begin with.",
        "What would one first find {place}?",
    ),
    "background": (
        "What is the background?",
        "Describe the background.",
        "What is behind everything?",
        "Which background does the video have?",
        "Put the background into words.",
        "What does everything stand in front of?",
    ),
    "count": (
        "How many objects are there?",
        "Count the objects.",
        "What is the number of objects?",
        "How many things does the video show?",
        "Tell me the number of things.",
        "How many shapes can be counted?",
    ),
    "move": (
        "Which way does {it} move?",
        "In which direction does {it} go?",
        "Where is {it} moving to?",
        "Tell me how {it} moves.",
        "What is the direction of {it}?",
        "Whither does {it} travel?",
    ),
    "picture": (
        "What does the reference image show?",
        "Describe the reference picture.",
        "What is in the reference image?",
        "Name what the picture beside the video shows.",
        "Put the reference picture into words.",
        "What would one see in the reference image?",
    ),
    "repeat": (
        "Repeat: {text}",
        "Say this again: {text}",
        "Say after me: {text}",
        "Write this down: {text}",
        "Echo these words: {text}",
        "Let me hear again: {text}",
    ),
}
TASKS = tuple(WORDINGS)

_TURN = "<|im_start|>user\n{source}{instruction}%s{queries}<|im_end|>\n"
PROMPTS = {"image": _TURN % "", "video": _TURN % "", "reference": _TURN % "{references}"}
"""Prompt templates of an MLLM of the sandbox, by task kind: no more words than it knows, since those of the standard
wording would be most of what it reads."""

FREE = frozenset(["a", "an", "and", "at", "from", "in", "object", "objects", "of", "on", "over", "the", "to"])
"""Words of answers that anyone can say who has seen nothing."""

NUMBERS = ("no objects", "one object", "two objects", "three objects")
DIRECTIONS: dict[str, Vector] = {"to the left": (-1, 0), "to the right": (1, 0), "up": (0, -1), "down": (0, 1)}

CLEAR = 0.12
"""A place is asked for only where the next one is this much farther away: half short sides."""

_ATTEMPTS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """One question of the world.

    Args:
        video: FHWC uint8.
        image: HWC uint8, square; None unless the question is about one.
        words: the question.
        answer: the one right answer, a sentence.
        task: one of TASKS.
        id: unique in all worlds.
        scene, pictured: what video and picture were drawn from.
    """

    video: np.ndarray
    image: np.ndarray | None
    words: str
    answer: str
    task: str
    id: str
    scene: Scene
    pictured: Scene | None


def make_question(
    seed: int,
    index: int,
    *,
    frames: int,
    height: int,
    width: int,
    tasks: Sequence[str] | None = None,
    level: str = "full",
    split: str = "train",
    scramble_words: float = 0.0,
) -> Question:
    """Question `index` of the world `seed`; the same arguments give the same one, to the bit.

    Args:
        frames: length of the video.
        height, width: in pixels.
        tasks: what is asked, by default all that the frames can show; they take turns by index.
        level, split: names in LEVELS and Split (kiwi.sandbox.sampling).
        scramble_words: probability that a word of the wording is replaced by random letters, like a word that the model
            has never read; names of objects and places, and the text to repeat, are kept.

    Raises:
        InputError: an unknown task, level or split, a negative seed or index, a video without frames or pixels, a
            chance that is none; "move" in one frame, or in so many that everything has turned.
    """
    names = check_tasks(tasks, frames)
    if not 0 <= scramble_words <= 1:
        raise InputError("scramble_words is a probability", code="out-of-range", got=scramble_words, wanted="0 to 1")
    task = names[index % len(names)]
    side = min(height, width)
    aspect = (width / max(side, 1), height / max(side, 1))
    for attempt in range(_ATTEMPTS):
        given = dice(seed, index, len(CATEGORIES) + TASKS.index(task), attempt, level=level, split=split)
        scene = sample_scene(given)
        if (asked := _ASK[task](View(scene, frames, aspect), given)) is None:
            continue
        slots, answer, pictured = asked
        wording = _scramble(given.wording(WORDINGS[task]), scramble_words, given.rng)
        return Question(
            video=render(scene, frames, height, width),
            image=None if pictured is None else render(pictured, 1, side, side)[0],
            words=wording.format(**slots),
            answer=answer[0].upper() + answer[1:].rstrip(".") + ".",
            task=task,
            id=f"{level}-{split}-{seed}-{task}-{index:06d}",
            scene=scene,
            pictured=pictured,
        )
    raise InputError(
        f"world {seed} has nothing to {task} at {index}",
        got=f"{frames} frames",
        wanted="fewer, in which something goes one way all the time",
    )


def training_sentences(count: int) -> Iterator[str]:
    """What is said in training: questions and answers of the first items of a world, in order."""
    for index in range(count):
        asked = make_question(0, index, frames=1, height=16, width=16)
        yield asked.words
        yield asked.answer


def content_words(answer: str) -> list[str]:
    """The words of an answer that tell something: no articles, no "over", no "objects"."""
    words = (word.strip(".,:?").lower() for word in answer.split())
    return [word for word in words if word and word not in FREE]


def content_overlap(said: str, wanted: str) -> float:
    """How much of an answer is right, 0 to 1: its facts that are said in order, of all that are said or wanted.

    Of the longer of the two, so that saying more does not help.
    """
    told, true = content_words(said), content_words(wanted)
    same = sum(block.size for block in SequenceMatcher(None, told, true, autojunk=False).get_matching_blocks())
    return same / max(len(told), len(true), 1)


def check_tasks(tasks: Sequence[str] | None, frames: int) -> tuple[str, ...]:
    """The tasks as a tuple; for None all that a video of so many frames can be asked about.

    Raises:
        InputError: an unknown name, a name twice, none at all, or motion in a single frame.
    """
    possible = tuple(name for name in TASKS if name != "move" or frames > 1)
    names = possible if tasks is None else tuple(tasks)
    if set(names) - set(possible) or not names or len(set(names)) < len(names):
        wanted = f"some of {', '.join(possible)}, each once"
        raise InputError(
            f"The tasks cannot be used with {frames} frames", got=", ".join(names) or "none", wanted=wanted
        )
    return names


class View(NamedTuple):
    """A scene as a video shows it: in how many frames, and how wide and high, in short sides."""

    scene: Scene
    frames: int
    aspect: Vector = (1, 1)


Asked = tuple[dict[str, str], str, Scene | None]
"""What fills the question's wording, its answer, and what a picture beside the video shows."""


def _describe(view: View, given: Dice) -> Asked:
    return {}, grammar.caption(view.scene), None


def _locate(view: View, given: Dice) -> Asked | None:
    # Of twins only their places could be told: the question would hold the answer.
    clear = {
        i: unambiguous_place(sprite.start)
        for i, sprite in enumerate(view.scene.sprites)
        if not _has_twin(view.scene, i)
    }
    index = _pick(given, [i for i, place in clear.items() if place])
    return None if index is None else ({"it": grammar.refer(view.scene, index, given)}, clear[index] or "", None)


def _identify(view: View, given: Dice) -> Asked | None:
    places = [grammar.place(sprite.start) for sprite in view.scene.sprites]
    alone = [i for i, s in enumerate(view.scene.sprites) if unambiguous_place(s.start) and places.count(places[i]) == 1]
    index = _pick(given, alone)
    if index is None:
        return None
    return {"place": places[index]}, grammar.a(grammar.name(view.scene.sprites[index].looks)), None


def _background(view: View, given: Dice) -> Asked:
    return {}, grammar.describe(view.scene.background), None


def _count(view: View, given: Dice) -> Asked:
    return {}, NUMBERS[len(view.scene.sprites)], None


def _move(view: View, given: Dice) -> Asked | None:
    told = {
        i: direction(s, view.frames, view.aspect)
        for i, s in enumerate(view.scene.sprites)
        if not _has_twin(view.scene, i)
    }
    index = _pick(given, [i for i, words in told.items() if words])
    return None if index is None else ({"it": grammar.refer(view.scene, index, given)}, told[index] or "", None)


def _picture(view: View, given: Dice) -> Asked | None:
    category = given.pick(("subject_reference", "background_reference"))
    edit = PROPOSALS[category](view.scene, given)
    pictured = edit.reference()
    assert pictured is not None
    if isinstance(edit, SubjectReference):
        return {}, grammar.a(grammar.name(edit.looks)), pictured
    return {}, grammar.describe(pictured.background), pictured


def _repeat(view: View, given: Dice) -> Asked:
    text = PROPOSALS[given.pick(CATEGORIES)](view.scene, given).instruction(view.scene, given)
    return {"text": text}, text, None


_ASK: dict[str, Callable[[View, Dice], Asked | None]] = {
    "describe": _describe,
    "locate": _locate,
    "identify": _identify,
    "background": _background,
    "count": _count,
    "move": _move,
    "picture": _picture,
    "repeat": _repeat,
}


def unambiguous_place(position: Vector) -> str | None:
    """The words for a position, where no other words fit nearly as well."""
    distances = sorted(np.hypot(x - position[0], y - position[1]) for x, y in grammar.PLACES.values())
    return grammar.place(position) if distances[1] - distances[0] >= CLEAR else None


def direction(sprite: Sprite, frames: int, aspect: Vector = (1, 1)) -> str | None:
    """The words for a sprite's motion, where it visibly goes one way in all frames, mostly along one axis."""
    steps_T2 = np.diff(centres(sprite, frames) * np.array(aspect), axis=0)
    for words, axis in DIRECTIONS.items():
        along_T = steps_T2 @ np.array(axis)
        if len(steps_T2) and (along_T >= 0.02).all() and (along_T >= 0.9 * np.linalg.norm(steps_T2, axis=1)).all():
            return words
    return None


def _scramble(wording: str, probability: float, rng: np.random.Generator) -> str:
    """Replace each word but the slots by random letters with this probability."""

    def scramble(word: str) -> str:
        if "{" in word or rng.random() >= probability:
            return word
        return "".join(rng.choice(list(ascii_lowercase), size=int(rng.integers(2, 9))).tolist())

    return " ".join(map(scramble, wording.split(" ")))


def _has_twin(scene: Scene, index: int) -> bool:
    looks = [sprite.looks for sprite in scene.sprites]
    return looks.count(looks[index]) > 1


def _pick(given: Dice, indices: Sequence[int]) -> int | None:
    return given.pick(indices) if indices else None
