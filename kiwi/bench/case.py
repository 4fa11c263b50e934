"""Cases: the items of a benchmark, and where their files lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Case:
    """One item.

    Args:
        id: unique in the benchmark; the source's name without its suffix, numbered where several items share a source.
        category: as the benchmark names it.
        instruction: what the edit is to do.
        source: the video.
        reference: the picture that belongs to the instruction, if any.
    """

    id: str
    category: str
    instruction: str
    source: Path
    reference: Path | None = None

    @property
    def edited_name(self) -> str:
        """Name of the file that an edit of it is expected under, as published: `<source stem>_edited.mp4`."""
        return f"{self.id}_edited.mp4"
