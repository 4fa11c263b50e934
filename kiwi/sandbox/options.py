"""Options of all commands that draw items of the sandbox: how many items, of which world, and how large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kiwi.errors import InputError
from kiwi.options import Options, option
from kiwi.sandbox.pairs import EditPair, make_pair


@dataclass(frozen=True, kw_only=True)
class WorldOptions(Options):
    """Items of the sandbox.

    Args:
        items: number of items, counted from the first of the world.
        seed: seed of the world.
        frames: frames of each video.
        size: height in pixels.
        width: width in pixels; the height unless given.
        level: how much a scene may hold.
        split: which objects and wordings are drawn; new_things, new_words and new_both hold those that train never has.
        categories: kinds of edit, separated by commas: local_change, local_add, local_remove, background_change,
            global_style, subject_reference, background_reference; all of them unless given.
    """

    items: int = 64
    seed: int = 0
    frames: int = 9
    size: int = 48
    width: int | None = None
    level: Literal["single", "easy", "middle", "full"] = "full"
    split: Literal["train", "test", "new_words", "new_things", "new_both"] = "train"
    categories: tuple[str, ...] = option((), repeat=True)

    def __post_init__(self) -> None:
        if self.items < 1:
            raise InputError("--items must be at least 1", code="out-of-range", got=self.items)
        names = tuple(name.strip() for entry in self.categories for name in entry.split(","))
        object.__setattr__(self, "categories", names)

    @property
    def world(self) -> dict[str, Any]:
        """How items are drawn: the keyword arguments of `make_pair`, as plain data."""
        return {
            "frames": self.frames,
            "height": self.size,
            "width": self.size if self.width is None else self.width,
            "categories": list(self.categories) or None,
            "level": self.level,
            "split": self.split,
        }

    def pair(self, index: int) -> EditPair:
        """Draw one item.

        Raises:
            InputError: settings that no item can be drawn with.
        """
        return make_pair(self.seed, index, **self.world)
