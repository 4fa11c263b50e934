"""Questions about videos of the sandbox, on which a small vision-language model is trained.

An item is a video, a question in one of several wordings, and its only correct answer, which is visible in the video or
in a reference image, or part of the question itself. The splits are those of the edits: training has no question about
held-out objects and backgrounds, and none in the last wordings of a task.
"""

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
from kiwi.sandbox.sampling import ItemSampler, item_sampler, sample_scene
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
        "Where is {object} at first?",
        "In which part of the first frame is {object}?",
        "Tell me where {object} is at the start.",
        "Find {object} in the first frame.",
        "Where does one see {object} to begin with?",
        "Point out the first place of {object}.",
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
        "Which way does {object} move?",
        "In which direction does {object} go?",
        "Where is {object} moving to?",
        "Tell me how {object} moves.",
        "What is the direction of {object}?",
        "Whither does {object} travel?",
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

_USER_TURN = "<|im_start|>user\n{source}{instruction}%s{queries}<|im_end|>\n"
PROMPTS = {"image": _USER_TURN % "", "video": _USER_TURN % "", "reference": _USER_TURN % "{references}"}
"""Prompt templates of an MLLM trained in the sandbox, by task kind. They contain no words outside its vocabulary; such
words would make up most of its input with the standard templates."""

FUNCTION_WORDS = frozenset(["a", "an", "and", "at", "from", "in", "object", "objects", "of", "on", "over", "the", "to"])
"""Words in answers that carry no information about the video."""

COUNT_ANSWERS = ("no objects", "one object", "two objects", "three objects")
DIRECTIONS: dict[str, Vector] = {"to the left": (-1, 0), "to the right": (1, 0), "up": (0, -1), "down": (0, 1)}

MIN_PLACE_MARGIN = 0.12
"""A place is unambiguous if the second nearest one is at least this much farther away, in positions (-1 to 1)."""

_MAX_ATTEMPTS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """One question of the sandbox.

    Args:
        video: video that the question is about, FHWC uint8.
        image: square reference image, HWC uint8; None unless the question is about it.
        text: wording of the question.
        answer: only correct answer, as a sentence.
        task: one of TASKS.
        id: identifier, unique across seeds.
        scene: scene of the video.
    """

    video: np.ndarray
    image: np.ndarray | None
    text: str
    answer: str
    task: str
    id: str
    scene: Scene


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
    """Render question `index` of a seed; the same arguments give a bitwise identical question.

    Args:
        frames: number of frames of the video.
        height, width: frame size in pixels.
        tasks: kinds of question (default: all that the number of frames allows); they take turns by index.
        level, split: names in LEVELS and SPLITS (kiwi.sandbox.sampling).
        scramble_words: probability that a word of the wording is replaced with random letters, like a word that the
            model has never read; names of objects and places, and the text to repeat, are kept.

    Raises:
        InputError: if a task, level or split is unknown, the seed or index is negative, the video has no frames or
            pixels, `scramble_words` is outside [0, 1], or "move" has one frame or so many that every sprite bounces.
    """
    names = check_tasks(tasks, frames)
    if not 0 <= scramble_words <= 1:
        raise InputError("scramble_words is out of range", code="out-of-range", got=scramble_words, expected="0 to 1")
    task = names[index % len(names)]
    side = min(height, width)
    aspect = (width / max(side, 1), height / max(side, 1))
    for attempt in range(_MAX_ATTEMPTS):
        sampler = item_sampler(seed, index, len(CATEGORIES) + TASKS.index(task), attempt, level=level, split=split)
        clip = SceneClip(sample_scene(sampler), frames, aspect)
        if (parts := _QUESTION_SAMPLERS[task](clip, sampler)) is None:
            continue
        wording = _scramble_words(sampler.choose_wording(WORDINGS[task]), scramble_words, sampler.rng)
        return Question(
            video=render(clip.scene, frames, height, width),
            image=None if parts.image_scene is None else render(parts.image_scene, 1, side, side)[0],
            text=wording.format(**parts.slots),
            answer=parts.answer[0].upper() + parts.answer[1:].rstrip(".") + ".",
            task=task,
            id=f"{level}-{split}-{seed}-{task}-{index:06d}",
            scene=clip.scene,
        )
    # Only "move" can fail in every attempt, because in long videos all sprites bounce off the border.
    problem = f"there is no question of task {task!r} about {frames} frames of item {index} of seed {seed}"
    raise InputError(problem, code="out-of-range", expected="so few frames that a sprite keeps its direction")


def training_sentences(count: int) -> Iterator[str]:
    """Yield the questions and answers of the first `count` training items of seed 0."""
    for index in range(count):
        question = make_question(0, index, frames=1, height=16, width=16)
        yield question.text
        yield question.answer


def content_words(answer: str) -> list[str]:
    """List the words of an answer in lower case, without FUNCTION_WORDS."""
    words = (word.strip(".,:?").lower() for word in answer.split())
    return [word for word in words if word and word not in FUNCTION_WORDS]


def content_overlap(answer: str, reference: str) -> float:
    """Share of content words, 0 to 1, that an answer has in common with the reference answer, in the same order.

    The number in common is divided by that of the longer of the two, so that a longer answer is no advantage.
    """
    words, reference_words = content_words(answer), content_words(reference)
    blocks = SequenceMatcher(None, words, reference_words, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / max(len(words), len(reference_words), 1)


def check_tasks(tasks: Sequence[str] | None, frames: int) -> tuple[str, ...]:
    """Return the tasks as a tuple; None stands for all that this number of frames allows.

    Raises:
        InputError: if a task is unknown or repeated, there is none, or "move" has a single frame.
    """
    possible = tuple(name for name in TASKS if name != "move" or frames > 1)
    names = possible if tasks is None else tuple(tasks)
    if not names or set(names) - set(possible) or len(set(names)) < len(names):
        got, expected = ", ".join(names) or "none", f"some of {', '.join(possible)}, each at most once"
        raise InputError(f"invalid tasks for {frames} frames", code="unknown-task", got=got, expected=expected)
    return names


class SceneClip(NamedTuple):
    """A scene as a clip with a number of frames and an aspect: width and height in short sides."""

    scene: Scene
    frames: int
    aspect: Vector = (1, 1)


class QuestionParts(NamedTuple):
    """Values of the slots of a wording, the answer, and the scene of the reference image."""

    slots: dict[str, str]
    answer: str
    image_scene: Scene | None = None


def _ask_place(clip: SceneClip, sampler: ItemSampler) -> QuestionParts | None:
    return _ask_about(clip, sampler, lambda sprite: name_place(sprite.start))


def _ask_object(clip: SceneClip, sampler: ItemSampler) -> QuestionParts | None:
    sprites = clip.scene.sprites
    places = [grammar.nearest_place(sprite.start) for sprite in sprites]
    candidates = [i for i, sprite in enumerate(sprites) if name_place(sprite.start) and places.count(places[i]) == 1]
    if not candidates:
        return None
    index = sampler.choose(candidates)
    return QuestionParts({"place": places[index]}, grammar.with_article(grammar.full_name(sprites[index].appearance)))


def _ask_direction(clip: SceneClip, sampler: ItemSampler) -> QuestionParts | None:
    return _ask_about(clip, sampler, lambda sprite: name_direction(sprite, clip.frames, clip.aspect))


def _ask_reference(clip: SceneClip, sampler: ItemSampler) -> QuestionParts:
    category = sampler.choose(("subject_reference", "background_reference"))
    edit = PROPOSALS[category](clip.scene, sampler)
    image_scene = edit.reference_scene()
    assert image_scene is not None
    if isinstance(edit, SubjectReference):
        return QuestionParts({}, grammar.with_article(grammar.full_name(edit.appearance)), image_scene)
    return QuestionParts({}, grammar.describe_background(image_scene.background), image_scene)


def _ask_repetition(clip: SceneClip, sampler: ItemSampler) -> QuestionParts:
    edit = PROPOSALS[sampler.choose(CATEGORIES)](clip.scene, sampler)
    text = edit.sample_instruction(clip.scene, sampler)
    return QuestionParts({"text": text}, text)


_QUESTION_SAMPLERS: dict[str, Callable[[SceneClip, ItemSampler], QuestionParts | None]] = {
    "describe": lambda clip, sampler: QuestionParts({}, grammar.caption_scene(clip.scene)),
    "locate": _ask_place,
    "identify": _ask_object,
    "background": lambda clip, sampler: QuestionParts({}, grammar.describe_background(clip.scene.background)),
    "count": lambda clip, sampler: QuestionParts({}, COUNT_ANSWERS[len(clip.scene.sprites)]),
    "move": _ask_direction,
    "picture": _ask_reference,
    "repeat": _ask_repetition,
}


def _ask_about(clip: SceneClip, sampler: ItemSampler, answer: Callable[[Sprite], str | None]) -> QuestionParts | None:
    """Ask about a sprite that has an answer; None if no sprite has one.

    Sprites that differ from others only in their places are excluded, because the question would contain the answer.
    """
    appearances = [sprite.appearance for sprite in clip.scene.sprites]
    answers = {
        index: text
        for index, sprite in enumerate(clip.scene.sprites)
        if appearances.count(sprite.appearance) == 1 and (text := answer(sprite)) is not None
    }
    if not answers:
        return None
    index = sampler.choose(answers)
    return QuestionParts({"object": grammar.sample_referring_expression(clip.scene, index, sampler)}, answers[index])


def name_place(position: Vector) -> str | None:
    """Name the place of a position; None if a second name fits nearly as well."""
    distances = sorted(np.hypot(x - position[0], y - position[1]) for x, y in grammar.PLACES.values())
    return grammar.nearest_place(position) if distances[1] - distances[0] >= MIN_PLACE_MARGIN else None


def name_direction(sprite: Sprite, frames: int, aspect: Vector = (1, 1)) -> str | None:
    """Name the direction in which a sprite moves; None unless it visibly moves along one axis in all frames."""
    steps_T2 = np.diff(centres(sprite, frames) * np.array(aspect), axis=0)
    for words, axis in DIRECTIONS.items():
        shift_T = steps_T2 @ np.array(axis)
        if len(shift_T) and (shift_T >= 0.02).all() and (shift_T >= 0.9 * np.linalg.norm(steps_T2, axis=1)).all():
            return words
    return None


def _scramble_words(wording: str, probability: float, rng: np.random.Generator) -> str:
    """Replace each word that is not a slot with random letters, with this probability."""
    words = wording.split(" ")
    for index, word in enumerate(words):
        if "{" not in word and rng.random() < probability:
            words[index] = "".join(rng.choice(list(ascii_lowercase), size=int(rng.integers(2, 9))).tolist())
    return " ".join(words)
