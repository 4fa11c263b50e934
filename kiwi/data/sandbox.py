"""The sandbox as data sources: its items are rendered when they are read, and are never stored on disk."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar, Literal

from kiwi.data.sources import DataSource
from kiwi.encoded import Pixels
from kiwi.media.video import VideoInfo
from kiwi.sandbox.export import WORLD_VERSION, mask_frames
from kiwi.sandbox.options import SandboxItems
from kiwi.sandbox.pairs import EditPair, check_categories, make_pair
from kiwi.sandbox.questions import Question, check_tasks, make_question
from kiwi.spec import renamed_from, require_positive

FPS = Fraction(8)
"""Frame rate of rendered clips; training does not depend on it."""

Part = Literal["source", "target", "mask", "reference"]


@dataclass(frozen=True)
class Item(ABC):
    """One item of the sandbox, a `kiwi.data.sources.Record`; it is rendered when its clips are decoded."""

    seed: int
    index: int
    frames: int
    height: int
    width: int
    level: str
    split: str
    kinds: tuple[str, ...]
    """Edit categories or question tasks that take turns: the item's is at `index` modulo their number."""

    answer: ClassVar[str] = ""
    caption: ClassVar[str] = ""
    parts: ClassVar[tuple[Part, ...]]
    """The clips that the item has besides reference images."""

    @property
    def category(self) -> str:
        return self.kinds[self.index % len(self.kinds)]

    @property
    def location(self) -> str:
        return f"item {self.id} of the sandbox"

    @property
    @abstractmethod
    def id(self) -> str:
        """Identifier, unique among all sandbox items; computed without rendering."""

    @property
    @abstractmethod
    def instruction(self) -> str:
        """The editing instruction or the question."""

    @property
    @abstractmethod
    def has_reference(self) -> bool:
        """Whether the item has a reference image; computed without rendering."""

    @abstractmethod
    def render(self, part: Part) -> Pixels:
        """Render one of the item's clips: (F, H, W, 3)."""

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


class EditItem(Item):
    """An edit with source, target and mask, and a reference image if its category needs one."""

    parts = ("source", "target", "mask")

    @property
    def id(self) -> str:
        return f"{self.level}-{self.split}-{self.seed}-{self.index:06d}"

    @property
    def instruction(self) -> str:
        return _get_texts(self)[0]

    @property
    def caption(self) -> str:  # type: ignore[override]
        return _get_texts(self)[1]

    @property
    def has_reference(self) -> bool:
        return self.category.endswith("_reference")

    def render(self, part: Part) -> Pixels:
        pair = _make_pair(self)
        if part == "mask":
            return mask_frames(pair.mask)
        if part == "reference":
            assert pair.reference is not None
            return pair.reference[None]
        return pair.source if part == "source" else pair.target


@dataclass(frozen=True)
class QuestionItem(Item):
    """A question about a video, or about a reference image."""

    parts = ("source",)
    scramble_words: float = 0.0
    """See `SandboxQuestions.scramble_words`."""

    @property
    def id(self) -> str:
        return f"{self.level}-{self.split}-{self.seed}-{self.category}-{self.index:06d}"

    @property
    def instruction(self) -> str:
        return _make_question(self).text

    @property
    def answer(self) -> str:  # type: ignore[override]
        return _make_question(self).answer

    @property
    def has_reference(self) -> bool:
        return self.category == "picture"

    def render(self, part: Part) -> Pixels:
        question = _make_question(self)
        if part == "source":
            return question.video
        assert question.image is not None
        return question.image[None]


# The last few pairs are cached, since the clips and texts of an item are requested one after another.
@lru_cache(maxsize=4)
def _make_pair(item: EditItem) -> EditPair:
    fields = dict(vars(item))
    return make_pair(categories=fields.pop("kinds"), **fields)


@lru_cache(maxsize=2**16)
def _get_texts(item: EditItem) -> tuple[str, str]:
    """Instruction and caption, cached for many items: with a feature cache, training needs nothing else of an item."""
    pair = _make_pair(item)
    return pair.instruction, pair.caption


@lru_cache(maxsize=4)
def _make_question(item: QuestionItem) -> Question:
    fields = dict(vars(item))
    return make_question(tasks=fields.pop("kinds"), **fields)


@dataclass(frozen=True)
class RenderedClip:
    """A clip or image of a sandbox item, a `kiwi.data.clips.Clip`."""

    item: Item
    part: Part
    path: ClassVar[None] = None

    def decode(self, max_frames: int | None = None) -> Pixels:
        return self.item.render(self.part)[:max_frames]

    def read_info(self) -> VideoInfo:
        return VideoInfo(frames=self.item.frames, height=self.item.height, width=self.item.width, fps=FPS)

    def hash_content(self) -> str:
        """Hash everything that determines the rendering, without rendering."""
        # Existing caches store these hashes, so the hashed text keeps the names of the release that first wrote them.
        item = repr(self.item).replace("scramble_words=", "mumbled=")
        return hashlib.sha256(f"({WORLD_VERSION}, Rendered(item={item}, part={self.part!r}))".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class SandboxDataset(SandboxItems, DataSource, ABC):
    """Base class of data sources that render sandbox items.

    Args:
        max_frames: number of frames of a clip, 4k + 1; 1 makes image pairs.
    """

    max_frames: int = 5

    def __post_init__(self) -> None:
        require_positive(self, "items", "max_frames")

    def _make_items(self, make_item: Callable[..., Item], kinds: tuple[str, ...]) -> Sequence[Item]:
        settings = self.render_settings(self.max_frames)
        items = [make_item(seed=self.seed, index=index, kinds=kinds, **settings) for index in range(self.items)]
        items[0].render("source")  # raises now, not during training, if these settings cannot be rendered
        return items


@dataclass(frozen=True, kw_only=True)
class SandboxEdits(SandboxDataset):
    """Edits of the sandbox.

    Args:
        categories: edit categories to include; all if null.
    """

    categories: list[str] | None = None

    @property
    def label(self) -> str:
        return f"the sandbox ({self.level}, {self.split}, seed {self.seed})"

    def list_records(self, root: Path) -> Sequence[Item]:
        """Make the items. Raises InputError if these settings cannot be rendered."""
        return self._make_items(EditItem, check_categories(self.categories))


@dataclass(frozen=True, kw_only=True)
class SandboxQuestions(SandboxDataset):
    """Visual question answering about the sandbox, to train a vision-language model (`LitMllm`).

    Args:
        items: number of questions, from index 0.
        tasks: question tasks to include; if null, all that are possible with this number of frames.
        scramble_words: probability of replacing a word of a question by random letters, so that the model learns to
            handle unknown words (`make_question`).
    """

    items: int = renamed_from("questions")
    tasks: list[str] | None = None
    scramble_words: float = renamed_from("mumbled", default=0.0)

    @property
    def label(self) -> str:
        return f"questions of the sandbox ({self.level}, {self.split}, seed {self.seed})"

    def list_records(self, root: Path) -> Sequence[Item]:
        """Make the items. Raises InputError if these settings cannot be rendered."""
        make_item = partial(QuestionItem, scramble_words=self.scramble_words)
        return self._make_items(make_item, check_tasks(self.tasks, self.max_frames))
