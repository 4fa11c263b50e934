"""Data sources, from which batches are mixed: manifests here, and the sandbox in `kiwi.data.sandbox`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kiwi.data.clips import Clip
from kiwi.data.manifest import read_manifest
from kiwi.spec import Spec, require_positive


class Record(Protocol):
    """An edit or a question to train on; its clips are decoded on demand."""

    @property
    def id(self) -> str:
        """Identifier, unique in its data source and stable between runs."""

    @property
    def location(self) -> str:
        """Position in the data source for error messages, such as "pairs.csv, line 7"."""

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
    """Base class of all data source specs.

    Args:
        max_frames: maximum number of frames of a clip; 1 makes image pairs of the first frames.
        weight: sampling weight of this source, relative to the sum of all weights; without weights sources are sampled
            in proportion to their sizes. Not used for validation.
    """

    max_frames: int = 81
    weight: float | None = None

    def __post_init__(self) -> None:
        require_positive(self, "max_frames")

    @property
    @abstractmethod
    def label(self) -> str:
        """Name of the source in the log."""

    @abstractmethod
    def list_records(self, root: Path) -> Sequence[Record]:
        """Read the records of this source, whose paths are relative to `root`.

        Raises:
            KiwiError: the source cannot be read, or its settings are invalid.
        """


@dataclass(frozen=True, kw_only=True)
class Manifest(DataSource):
    """A table of edits whose videos and images are files.

    Args:
        path: CSV, JSONL or parquet file, relative to the data module's root; paths in it are relative to its folder.
    """

    path: str

    @property
    def label(self) -> str:
        return self.path

    def list_records(self, root: Path) -> Sequence[Record]:
        return read_manifest(root / self.path)
