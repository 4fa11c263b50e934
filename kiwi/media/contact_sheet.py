"""Grids of labelled images."""

import math
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kiwi.media.image import WHITE, require_rgb, to_pil
from kiwi.media.resize import letterbox


def contact_sheet(
    rows: list[list[np.ndarray]], labels: list[str] | None = None, column_titles: list[str] | None = None, gap: int = 4
) -> np.ndarray:
    """Arrange images in a grid `[H, W, 3]`, with a label to the left of each row and a title above each column.

    Every cell has the size of the largest image; smaller ones are letterboxed. Rows may differ in length.

    Raises:
        ValueError: there is no image, or the number of labels differs from the number of rows.
    """
    columns = max(len(row) for row in rows)
    images = [image for row in rows for image in row]
    cell_height = max(require_rgb(image, "HWC").shape[0] for image in images)
    cell_width = max(image.shape[1] for image in images)

    label_images = [None] * len(rows) if labels is None else [_render_text(label, 160) for label in labels]
    title_images = [_render_text(title, cell_width) for title in column_titles or ()]
    left = gap + max(label.width + gap if label else 0 for label in label_images)
    top = gap + max((title.height + gap for title in title_images), default=0)
    row_height = max([cell_height, *(label.height for label in label_images if label)])
    size = (left + columns * (cell_width + gap), top + len(rows) * (row_height + gap))
    sheet = Image.new("RGB", size, WHITE)
    for column, title in enumerate(title_images):
        sheet.paste(title, (left + column * (cell_width + gap), gap))
    for index, (row, label) in enumerate(zip(rows, label_images, strict=True)):
        y = top + index * (row_height + gap)
        if label:
            sheet.paste(label, (gap, y))
        for column, image in enumerate(row):
            sheet.paste(to_pil(letterbox(image, cell_height, cell_width)), (left + column * (cell_width + gap), y))
    return np.array(sheet)


def _render_text(text: str, width: int) -> Image.Image:
    """Render text in PIL's default font, black on white, wrapped to about `width` pixels."""
    font = ImageFont.load_default()
    per_line = max(1, int(width / font.getlength("n")))
    wrapped = "\n".join(line for part in text.splitlines() for line in textwrap.wrap(part, per_line)) or " "
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    _, _, right, bottom = measure.multiline_textbbox((0, 0), wrapped, font=font)
    image = Image.new("RGB", (math.ceil(min(right, width)) + 1, math.ceil(bottom) + 2), WHITE)
    ImageDraw.Draw(image).multiline_text((0, 0), wrapped, fill=(0, 0, 0), font=font)
    return image
