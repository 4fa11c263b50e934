"""The sandbox as data sources: items that are rendered when they are read, and are never on disk."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from kiwi.data.sources import DataSource
from kiwi.encoded import Pixels
from kiwi.media.video import VideoInfo
from kiwi.sandbox.export import WORLD_VERSION
from kiwi.sandbox.pairs import EditPair, check_categories, make_pair
from kiwi.sandbox.questions import Question, check_tasks, make_question
from kiwi.sandbox.sampling import LevelName, SplitName
from kiwi.spec import renamed_from, require_positive

FPS = Fraction(8)
"""Frame rate of rendered clips; nothing in training depends on it."""

Part = Literal["source", "target", "mask", "reference"]


@dataclass(frozen=True)
class Item(ABC):
    """One item of the sandbox, rendered when its clips are read: a `kiwi.data.sources.Record`."""

    seed: int
    index: int
    frames: int
    height: int
    width: int
    level: str
    split: str
    kinds: tuple[str, ...]
    """Categories of edits, or tasks of questions; item `index` has kind `index` modulo their number."""

    answer: ClassVar[str] = ""
    caption: ClassVar[str] = ""
    parts: ClassVar[tuple[Part, ...]]
    """Clips that it has besides references."""

    @property
    def category(self) -> str:
        return self.kinds[self.index % len(self.kinds)]

    @property
    def location(self) -> str:
        return f"item {self.id} of the sandbox"

    @property
    @abstractmethod
    def id(self) -> str:
        """Unique in all worlds; known without rendering."""

    @property
    @abstractmethod
    def instruction(self) -> str:
        """The instruction or question."""

    @property
    @abstractmethod
    def has_reference(self) -> bool:
        """Whether there is an image beside the video; known without rendering."""

    @abstractmethod
    def render(self, part: Part) -> Pixels:
        """One of its clips, (F, H, W, 3)."""

    @property
    def source(self) -> RenderedClip:
        return RenderedClip(self, "source")

    @property
    def target(self) -> RenderedClip | None:
        return self._clip("target")

    @property
    def mask(self) -> RenderedClip | None:
        return self._clip("mask")

    @property
    def references(self) -> tuple[RenderedClip, ...]:
        return (RenderedClip(self, "reference"),) if self.has_reference else ()

    def _clip(self, part: Part) -> RenderedClip | None:
        return RenderedClip(self, part) if part in self.parts else None

    def _arguments(self, kinds: str) -> dict[str, Any]:
        """The arguments by which the sandbox makes it; `kinds` is their name for the categories or tasks."""
        return {kinds if name == "kinds" else name: value for name, value in vars(self).items()}


class EditItem(Item):
    """An edit: source, target, mask, and a reference image if its category has one."""

    parts = ("source", "target", "mask")

    @property
    def id(self) -> str:
        return f"{self.level}-{self.split}-{self.seed}-{self.index:06d}"

    @property
    def instruction(self) -> str:
        return _texts(self)[0]

    @property
    def caption(self) -> str:  # type: ignore[override]
        return _texts(self)[1]

    @property
    def has_reference(self) -> bool:
        return self.category.endswith("_reference")

    def render(self, part: Part) -> Pixels:
        pair = _pair(self)
        if part == "mask":
            return pair.mask[..., None].repeat(3, axis=-1).astype(np.uint8) * 255
        if part == "reference":
            assert pair.reference is not None
            return pair.reference[None]
        return pair.source if part == "source" else pair.target


@dataclass(frozen=True)
class QuestionItem(Item):
    """A question about a video, or about an image beside it."""

    parts = ("source",)
    scramble_words: float = 0.0
    """As `SandboxQuestions.scramble_words`."""

    @property
    def id(self) -> str:
        return f"{self.level}-{self.split}-{self.seed}-{self.category}-{self.index:06d}"

    @property
    def instruction(self) -> str:
        return _question(self).text

    @property
    def answer(self) -> str:  # type: ignore[override]
        return _question(self).answer

    @property
    def has_reference(self) -> bool:
        return self.category == "picture"

    def render(self, part: Part) -> Pixels:
        question = _question(self)
        if part == "source":
            return question.video
        assert question.image is not None
        return question.image[None]


# The last few are kept, since source, target, reference and texts are read one by one.
@lru_cache(maxsize=4)
def _pair(item: EditItem) -> EditPair:
    return make_pair(**item._arguments("categories"))


@lru_cache(maxsize=2**16)
def _texts(item: EditItem) -> tuple[str, str]:
    """Instruction and caption: all that training renders an item for when its clips are in a cache."""
    pair = _pair(item)
    return pair.instruction, pair.caption


@lru_cache(maxsize=4)
def _question(item: QuestionItem) -> Question:
    return make_question(**item._arguments("tasks"))


@dataclass(frozen=True)
class RenderedClip:
    """A clip or image of an item: a `kiwi.data.clips.Clip`."""

    item: Item
    part: Part
    path: ClassVar[None] = None

    def decode(self, max_frames: int | None = None) -> Pixels:
        return self.item.render(self.part)[:max_frames]

    def info(self) -> VideoInfo:
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

    def content_hash(self) -> str:
        """A hash of what is rendered, known without rendering."""
        # Caches keep these hashes: the text has the names of the release that the first caches were filled by.
        item = repr(self.item).replace("scramble_words=", "mumbled=")
        return hashlib.sha256(f"({WORLD_VERSION}, Rendered(item={item}, part={self.part!r}))".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class SandboxDataset(DataSource, ABC):
    """Items of the sandbox.

    Args:
        items: number of items, from the first; an item is a function of (seed, split, index), so more cost nothing.
        seed: seed of the world.
        max_frames: frames of a clip, 4k + 1; 1 makes image pairs.
        size: height in pixels.
        width: in pixels; as the height if null.
        level: how complex the scenes are (`kiwi sandbox preview --help`).
        split: which objects and wordings occur.
    """

    items: int
    seed: int = 0
    max_frames: int = 5
    size: int = 32
    width: int | None = None
    level: LevelName = "full"
    split: SplitName = "train"

    def __post_init__(self) -> None:
        require_positive(self, "items", "max_frames")

    def _items(self, make_item: Callable[..., Item], kinds: tuple[str, ...]) -> Sequence[Item]:
        width = self.size if self.width is None else self.width
        items = [
            make_item(self.seed, index, self.max_frames, self.size, width, self.level, self.split, kinds)
            for index in range(self.items)
        ]
        items[0].render("source")  # settings that nothing can be rendered with are refused before training starts
        return items


@dataclass(frozen=True, kw_only=True)
class SandboxEdits(SandboxDataset):
    """Edits of the sandbox.

    Args:
        categories: kinds of edit; all if null.
    """

    categories: list[str] | None = None

    @property
    def label(self) -> str:
        return f"the sandbox ({self.level}, {self.split}, seed {self.seed})"

    def records(self, root: Path) -> Sequence[Item]:
        """Its items. Raises InputError if none can be rendered with these settings."""
        return self._items(EditItem, check_categories(self.categories))


@dataclass(frozen=True, kw_only=True)
class SandboxQuestions(SandboxDataset):
    """Questions about the sandbox, to train a vision-language model on (`LitMllm`).

    Args:
        items: number of questions, from the first.
        tasks: kinds of question; all that the frames allow if null.
        scramble_words: probability that a word of a question is replaced by random letters, so that the model learns to
            cope with words that it has never read (`make_question`).
    """

    items: int = renamed_from("questions")
    tasks: list[str] | None = None
    scramble_words: float = renamed_from("mumbled", default=0.0)

    @property
    def label(self) -> str:
        return f"questions of the sandbox ({self.level}, {self.split}, seed {self.seed})"

    def records(self, root: Path) -> Sequence[Item]:
        """Its items. Raises InputError if none can be rendered with these settings."""
        make_item = partial(QuestionItem, scramble_words=self.scramble_words)
        return self._items(make_item, check_tasks(self.tasks, self.max_frames))
