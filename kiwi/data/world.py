"""The sandbox as a data set: items that are drawn when they are asked for, in the place of a manifest's files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from kiwi.data.sample import Pixels
from kiwi.errors import InputError
from kiwi.media.video import VideoInfo
from kiwi.sandbox.export import WORLD_VERSION
from kiwi.sandbox.pairs import EditPair, category_of, check_categories, make_pair

FPS = Fraction(8)
"""Of rendered clips; nothing in training depends on it."""


@dataclass(frozen=True)
class Item:
    """Which item of which world, and how large it is drawn: arguments of `make_pair`."""

    seed: int
    index: int
    frames: int
    height: int
    width: int
    categories: tuple[str, ...]
    level: str
    split: str

    def draw(self) -> EditPair:
        """The item; the last few are kept, since source, target and reference are asked for one by one."""
        return _drawn(self)


@lru_cache(maxsize=4)
def _drawn(item: Item) -> EditPair:
    return make_pair(**vars(item))


_PARTS: dict[str, Callable[[EditPair], Pixels | None]] = {
    "source": lambda pair: pair.source,
    "target": lambda pair: pair.target,
    "mask": lambda pair: 255 * pair.mask[..., None].repeat(3, axis=-1).astype(np.uint8),
    "reference": lambda pair: None if pair.reference is None else pair.reference[None],
}


@dataclass(frozen=True)
class Rendered:
    """A clip or picture of an item, where a file could be."""

    item: Item
    part: Literal["source", "target", "mask", "reference"]

    def frames(self) -> Pixels:
        """Its frames, (F, H, W, 3)."""
        frames = _PARTS[self.part](self.item.draw())
        assert frames is not None
        return frames

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


@dataclass(frozen=True, kw_only=True)
class WorldRecord:
    """An item in the place of a manifest's row (`EditRecord`, whose fields these are)."""

    item: Item

    @property
    def id(self) -> str:
        return f"{self.item.level}-{self.item.split}-{self.item.seed}-{self.item.index:06d}"

    @property
    def where(self) -> str:
        return f"item {self.id} of the world"

    @property
    def category(self) -> str:
        return category_of(self.item.index, self.item.categories)

    @property
    def instruction(self) -> str:
        return self.item.draw().instruction

    @property
    def source(self) -> Rendered:
        return Rendered(self.item, "source")

    @property
    def target(self) -> Rendered:
        return Rendered(self.item, "target")

    @property
    def mask(self) -> Rendered:
        return Rendered(self.item, "mask")

    @cached_property
    def references(self) -> tuple[Rendered, ...]:
        return (Rendered(self.item, "reference"),) if self.category.endswith("_reference") else ()


@dataclass(frozen=True, kw_only=True)
class World:
    """Items of the sandbox as one data set of a mixture; what they show is never on disk.

    Args:
        items: how many, from the first; drawing is a function of (seed, split, index), so more cost nothing.
        seed: which world.
        max_frames: frames of a clip, 4k + 1; 1 makes image pairs.
        size: height in pixels.
        width: in pixels; none for as wide as high.
        level, split: names of the sandbox's levels and splits; see `kiwi sandbox preview --help`.
        categories: kinds of edit; all for none.
        weight: as of a manifest.
    """

    items: int
    seed: int = 0
    max_frames: int = 5
    size: int = 32
    width: int | None = None
    level: str = "full"
    split: str = "train"
    categories: list[str] | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.items < 1:
            raise InputError("a world needs items", got=self.items)
        if self.max_frames < 1:
            raise InputError("max_frames of a world must be at least 1", got=self.max_frames)

    @property
    def path(self) -> str:
        """What it is called where a manifest's path would be."""
        return f"the sandbox ({self.level}, {self.split}, seed {self.seed})"

    def records(self) -> Iterator[WorldRecord]:
        """One an item.

        Raises:
            InputError: settings that no item can be drawn with.
        """
        size = (self.max_frames, self.size, self.size if self.width is None else self.width)
        for index in range(self.items):
            item = Item(self.seed, index, *size, check_categories(self.categories), self.level, self.split)
            if index == 0:
                item.draw()
            yield WorldRecord(item=item)
