"""The sandbox as data sets: items that are drawn when they are asked for, in the place of a manifest's files."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from typing import ClassVar, Literal

import numpy as np

from kiwi.encoded import Pixels
from kiwi.errors import InputError
from kiwi.media.video import VideoInfo
from kiwi.sandbox.export import WORLD_VERSION
from kiwi.sandbox.pairs import EditPair, check_categories, make_pair
from kiwi.sandbox.questions import Question, check_tasks, make_question

FPS = Fraction(8)
"""Of rendered clips; nothing in training depends on it."""

Part = Literal["source", "target", "mask", "reference"]


@dataclass(frozen=True)
class Item(ABC):
    """Which item of which world, and how large it is drawn."""

    seed: int
    index: int
    frames: int
    height: int
    width: int
    level: str
    split: str
    kinds: tuple[str, ...]
    """That take turns by index: categories of edits, or tasks of questions."""

    answer: ClassVar[str] = ""
    caption: ClassVar[str] = ""
    parts: ClassVar[tuple[Part, ...]]

    @property
    def kind(self) -> str:
        """Its category or task."""
        return self.kinds[self.index % len(self.kinds)]

    @property
    @abstractmethod
    def id(self) -> str:
        """Unique in all worlds; nothing is drawn for it."""

    @property
    @abstractmethod
    def words(self) -> str:
        """The instruction or question."""

    @property
    @abstractmethod
    def has_reference(self) -> bool:
        """Whether there is a picture beside the video; nothing is drawn for it."""

    @abstractmethod
    def draw(self, part: Part) -> Pixels:
        """One of its clips or pictures, (F, H, W, 3)."""


class EditItem(Item):
    """An edit: source, target, mask, and a reference where its category has one."""

    parts = ("source", "target", "mask")

    @property
    def id(self) -> str:
        return f"{self.level}-{self.split}-{self.seed}-{self.index:06d}"

    @property
    def words(self) -> str:
        return _words(self)[0]

    @property
    def caption(self) -> str:  # type: ignore[override]
        return _words(self)[1]

    @property
    def has_reference(self) -> bool:
        return self.kind.endswith("_reference")

    def draw(self, part: Part) -> Pixels:
        pair = _pair(self)
        if part == "mask":
            return pair.mask[..., None].repeat(3, axis=-1).astype(np.uint8) * 255
        if part == "reference":
            assert pair.reference is not None
            return pair.reference[None]
        return pair.source if part == "source" else pair.target


@dataclass(frozen=True)
class QuestionItem(Item):
    """A question about a video, or about a picture beside it."""

    parts = ("source",)
    scramble_words: float = 0.0
    """As `Questions.mumbled`."""

    @property
    def id(self) -> str:
        return f"{self.level}-{self.split}-{self.seed}-{self.kind}-{self.index:06d}"

    @property
    def words(self) -> str:
        return _question(self).text

    @property
    def answer(self) -> str:  # type: ignore[override]
        return _question(self).answer

    @property
    def has_reference(self) -> bool:
        return self.kind == "picture"

    def draw(self, part: Part) -> Pixels:
        question = _question(self)
        if part == "source":
            return question.video
        assert question.image is not None
        return question.image[None]


# The last few are kept, since source, target, reference and words are asked for one by one.
@lru_cache(maxsize=4)
def _pair(item: EditItem) -> EditPair:
    drawn = vars(item) | {"categories": item.kinds}
    return make_pair(**{name: value for name, value in drawn.items() if name != "kinds"})


@lru_cache(maxsize=2**16)
def _words(item: EditItem) -> tuple[str, str]:
    """Instruction and caption: all that training draws an item for when a cache holds its clips."""
    pair = _pair(item)
    return pair.instruction, pair.caption


@lru_cache(maxsize=4)
def _question(item: QuestionItem) -> Question:
    drawn = vars(item) | {"tasks": item.kinds}
    return make_question(**{name: value for name, value in drawn.items() if name != "kinds"})


@dataclass(frozen=True)
class Rendered:
    """A clip or picture of an item, where a file could be."""

    item: Item
    part: Part

    def frames(self) -> Pixels:
        """Its frames, (F, H, W, 3)."""
        return self.item.draw(self.part)

    def info(self) -> VideoInfo:
        """What a file's header would say."""
        return VideoInfo(
            frames=self.item.frames,
            height=self.item.height,
            width=self.item.width,
            fps=FPS,
            duration=float(self.item.frames / FPS),
            rotation=0,
            pixel_format="rgb24",
            codec="rendered",
        )

    def content(self) -> str:
        """A hash that tells it from all others; nothing is drawn for it."""
        return hashlib.sha256(repr((WORLD_VERSION, self)).encode()).hexdigest()


@dataclass(frozen=True)
class WorldRecord:
    """An item in the place of a manifest's row (`EditRecord`, whose fields these are)."""

    item: Item

    @property
    def id(self) -> str:
        return self.item.id

    @property
    def where(self) -> str:
        return f"item {self.id} of the world"

    @property
    def category(self) -> str:
        return self.item.kind

    @property
    def instruction(self) -> str:
        return self.item.words

    @property
    def answer(self) -> str:
        return self.item.answer

    @property
    def caption(self) -> str:
        return self.item.caption

    @property
    def source(self) -> Rendered:
        return Rendered(self.item, "source")

    @property
    def target(self) -> Rendered | None:
        return self._part("target")

    @property
    def mask(self) -> Rendered | None:
        return self._part("mask")

    @property
    def references(self) -> tuple[Rendered, ...]:
        return (Rendered(self.item, "reference"),) if self.item.has_reference else ()

    def _part(self, part: Part) -> Rendered | None:
        return Rendered(self.item, part) if part in self.item.parts else None


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What all data sets have in common whose items are drawn; they are never on disk.

    Args:
        seed: which world.
        max_frames: frames of a clip, 4k + 1; 1 makes image pairs.
        size: height in pixels.
        width: in pixels; none for as wide as high.
        level, split: names of the sandbox's levels and splits; see `kiwi sandbox preview --help`.
        weight: as of a manifest.
    """

    seed: int = 0
    max_frames: int = 5
    size: int = 32
    width: int | None = None
    level: str = "full"
    split: str = "train"
    weight: float | None = None

    def _records(self, kind: Callable[..., Item], count: int, kinds: tuple[str, ...]) -> Iterator[WorldRecord]:
        if count < 1:
            raise InputError("a world needs items", got=count)
        if self.max_frames < 1:
            raise InputError("max_frames of a world must be at least 1", got=self.max_frames)
        width = self.size if self.width is None else self.width
        for index in range(count):
            item = kind(self.seed, index, self.max_frames, self.size, width, self.level, self.split, kinds)
            if index == 0:
                item.draw("source")  # settings that nothing can be drawn with are told at once
            yield WorldRecord(item)


@dataclass(frozen=True, kw_only=True)
class World(Drawn):
    """Edits of the sandbox as one data set of a mixture.

    Args:
        items: how many, from the first; drawing is a function of (seed, split, index), so more cost nothing.
        categories: kinds of edit; all for none.
    """

    items: int
    categories: list[str] | None = None

    @property
    def path(self) -> str:
        """What it is called where a manifest's path would be."""
        return f"the sandbox ({self.level}, {self.split}, seed {self.seed})"

    def records(self) -> Iterator[WorldRecord]:
        """One an item.

        Raises:
            InputError: settings that no item can be drawn with.
        """
        return self._records(EditItem, self.items, check_categories(self.categories))


@dataclass(frozen=True, kw_only=True)
class Questions(Drawn):
    """Questions about the sandbox as one data set, for a reader to be trained on (LitMllm).

    Args:
        questions: how many, from the first.
        tasks: what is asked; none for all that the frames can show.
        mumbled: chance of a question's words to be letters of no sense, so that a reader learns to do without words
            that it never heard (`make_question` in kiwi.sandbox.questions).
    """

    questions: int
    tasks: list[str] | None = None
    mumbled: float = 0.0

    @property
    def path(self) -> str:
        """What it is called where a manifest's path would be."""
        return f"questions of the sandbox ({self.level}, {self.split}, seed {self.seed})"

    def records(self) -> Iterator[WorldRecord]:
        """One a question. Raises InputError as `World.records`."""
        item = partial(QuestionItem, scramble_words=self.mumbled)
        return self._records(item, self.questions, check_tasks(self.tasks, self.max_frames))
