"""A preview image of the sandbox with one row per item."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kiwi.errors import InputError
from kiwi.media.image import contact_sheet, write_image
from kiwi.options import positional
from kiwi.sandbox.export import mask_frames
from kiwi.sandbox.options import WorldOptions
from kiwi.sandbox.pairs import CATEGORIES, EditPair
from kiwi.sandbox.world import Pixels

_COLUMNS = ["reference", "source, first", "source, last", "target, first", "target, last", "mask, last"]
# Approximate height of the cells, which are enlarged so that single pixels are visible.
_CELL_HEIGHT = 144
# Grey levels of the cell of a missing reference, and of the border of every cell.
_EMPTY_GREY, _BORDER_GREY = 232, 160


@dataclass(frozen=True, kw_only=True)
class PreviewOptions(WorldOptions):
    """Draw items of the sandbox into one image.

    Each row shows an item: its reference image, the first and last frames of source and target, and the mask of the
    last frame.

    Args:
        out: PNG file to write.
    """

    out: Path = positional(metavar="OUT.png")
    items: int = len(CATEGORIES)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out.suffix.lower() != ".png":
            raise InputError(
                "the preview must be a PNG file", code="wrong-suffix", got=self.out, expected="a path that ends in .png"
            )


def write_preview(options: PreviewOptions) -> None:
    """Render the items and write the image. Raises InputError like `make_pair`."""
    write_image(options.out, draw_preview(options.pairs()))


def draw_preview(pairs: list[EditPair]) -> Pixels:
    """Draw one image (HWC) with a row per pair: reference, source, target and mask."""
    rows, labels = [], []
    for pair in pairs:
        mask = mask_frames(pair.mask[-1:])[0]
        reference = np.full_like(pair.source[0], _EMPTY_GREY) if pair.reference is None else pair.reference
        cells = [reference, pair.source[0], pair.source[-1], pair.target[0], pair.target[-1], mask]
        rows.append([_enlarge(cell) for cell in cells])
        labels.append(f"{pair.instruction}\n{pair.category}\n{pair.id}")
    return contact_sheet(rows, labels, _COLUMNS)


def _enlarge(image: Pixels) -> Pixels:
    """Enlarge an image and add a thin border, because masks and references can be white like the sheet."""
    factor = max(1, round(_CELL_HEIGHT / image.shape[0]))
    enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.pad(enlarged, ((1, 1), (1, 1), (0, 0)), constant_values=_BORDER_GREY)
