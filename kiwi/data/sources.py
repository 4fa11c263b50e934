"""Data sources: what a mixture is made of. Manifests are read here, the sandbox in `kiwi.data.sandbox`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kiwi.data.clips import Clip
from kiwi.data.manifest import read_manifest
from kiwi.spec import Spec, require_positive


class Record(Protocol):
    """An edit, or a question, to train on; its clips are decoded when they are needed."""

    @property
    def id(self) -> str:
        """Unique in its source, and the same at every read."""

    @property
    def location(self) -> str:
        """Its place in the source, for messages."""

    @property
    def instruction(self) -> str: ...

    @property
    def source(self) -> Clip: ...

    @property
    def target(self) -> Clip | None: ...

    @property
    def references(self) -> Sequence[Clip]: ...

    @property
    def category(self) -> str | None: ...

    @property
    def answer(self) -> str: ...

    @property
    def caption(self) -> str: ...

    @property
    def mask(self) -> Clip | None: ...


@dataclass(frozen=True, kw_only=True)
class DataSource(Spec, ABC):
    """The family of what a mixture is made of.

    Args:
        max_frames: maximum number of frames of a clip; 1 takes the first frames as image pairs.
        weight: share of the samples drawn from this source, relative to the weights of all sources; without weights
            sources are drawn in proportion to their sizes. Not used in validation.
    """

    max_frames: int = 81
    weight: float | None = None

    def __post_init__(self) -> None:
        require_positive(self, "max_frames")

    @property
    @abstractmethod
    def label(self) -> str:
        """What the log calls it."""

    @abstractmethod
    def records(self, root: Path) -> Sequence[Record]:
        """Its samples.

        Args:
            root: folder that relative paths start from.

        Raises:
            KiwiError: it cannot be read, or its settings cannot be used.
        """


@dataclass(frozen=True, kw_only=True)
class Manifest(DataSource):
    """A list of edits in files.

    Args:
        path: CSV, JSONL or parquet, relative to the data module's root; its own paths are relative to its folder.
    """

    path: str

    @property
    def label(self) -> str:
        return self.path

    def records(self, root: Path) -> Sequence[Record]:
        return read_manifest(root / self.path)
