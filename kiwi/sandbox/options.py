"""Which items of the sandbox to render, and at which size: shared by its data sources and its commands."""

from dataclasses import dataclass
from typing import Any

from kiwi.console import progress
from kiwi.options import Options, option
from kiwi.sandbox.pairs import EditPair, check_categories, make_pair
from kiwi.sandbox.sampling import LevelName, SplitName
from kiwi.spec import Spec


@dataclass(frozen=True, kw_only=True)
class SandboxItems(Spec):
    """Items of the sandbox to render: the first ones of a seed, at one size.

    Args:
        items: number of items, counted from item 0
        seed: random seed; each seed gives different items
        size: height of the videos in pixels
        width: width of the videos in pixels (default: the height)
        level: complexity of the scenes, from one plain object to three patterned ones with a moving camera
        split: subset of items; new_words, new_things and new_both have wordings, objects and backgrounds, or all of
            these, that train never shows
    """

    items: int
    seed: int = 0
    size: int = 32
    width: int | None = None
    level: LevelName = "full"
    split: SplitName = "train"

    def render_settings(self, frames: int) -> dict[str, Any]:
        """Arguments that `make_pair` and `make_question` have in common, other than seed and index."""
        width = self.size if self.width is None else self.width
        return {"frames": frames, "height": self.size, "width": width, "level": self.level, "split": self.split}


@dataclass(frozen=True, kw_only=True)
class WorldOptions(SandboxItems, Options):
    """Options of the commands that render edits of the sandbox.

    Args:
        frames: number of frames of each video
        categories: kinds of edit, separated by commas, of local_change, local_remove, local_add, background_change,
            global_style, subject_reference and background_reference (default: all)
    """

    items: int = 64
    size: int = 48
    frames: int = 9
    categories: tuple[str, ...] = option((), comma_separated=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "items", "frames", "size", "width")
        check_categories(self.categories or None)

    @property
    def pair_settings(self) -> dict[str, Any]:
        """Arguments of `make_pair` other than seed and index, as plain data."""
        return self.render_settings(self.frames) | {"categories": list(self.categories) or None}

    def pair(self, index: int) -> EditPair:
        """Render one item. Raises InputError like `make_pair`."""
        return make_pair(self.seed, index, **self.pair_settings)

    def pairs(self) -> list[EditPair]:
        """Render all items, with a progress bar. Raises InputError like `make_pair`."""
        return [self.pair(index) for index in progress(range(self.items), "rendering", total=self.items)]
