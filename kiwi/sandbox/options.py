"""The options that all sandbox commands share: which items of which world to render, and at which size."""

from dataclasses import dataclass
from typing import Any

from kiwi.console import progress
from kiwi.errors import InputError
from kiwi.options import Options, option
from kiwi.sandbox.pairs import EditPair, check_categories, make_pair
from kiwi.sandbox.sampling import LevelName, SplitName


@dataclass(frozen=True, kw_only=True)
class WorldOptions(Options):
    """Which items of the sandbox to render.

    Args:
        items: number of items; the first ones of the world are used.
        seed: seed of the world.
        frames: number of frames of each video.
        size: height in pixels.
        width: width in pixels (default: the height).
        level: complexity of the scenes.
        split: subset of items; new_things, new_words and new_both have objects or wordings that train never shows.
        categories: kinds of edit, separated by commas, such as local_add,global_style (default: all).
    """

    items: int = 64
    seed: int = 0
    frames: int = 9
    size: int = 48
    width: int | None = None
    level: LevelName = "full"
    split: SplitName = "train"
    categories: tuple[str, ...] = option((), comma_separated=True)

    def __post_init__(self) -> None:
        for name in ("items", "frames", "size", "width"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"--{name} must be at least 1", code="out-of-range", got=value)
        check_categories(self.categories or None)

    @property
    def world(self) -> dict[str, Any]:
        """Arguments of `make_pair` other than seed and index, as plain data."""
        return {
            "frames": self.frames,
            "height": self.size,
            "width": self.size if self.width is None else self.width,
            "categories": list(self.categories) or None,
            "level": self.level,
            "split": self.split,
        }

    def pair(self, index: int) -> EditPair:
        """Render one item. Raises InputError like `make_pair`."""
        return make_pair(self.seed, index, **self.world)

    def pairs(self) -> list[EditPair]:
        """Render all items, with a progress bar. Raises InputError like `make_pair`."""
        return [self.pair(index) for index in progress(range(self.items), "rendering", total=self.items)]
