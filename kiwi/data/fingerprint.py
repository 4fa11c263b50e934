"""The fingerprint of training data, by which a resumed run notices edited rows and exchanged files.

Items of the sandbox have none: their ids, which the batch order contains, determine them.
"""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kiwi.data.clips import Clip, EncodedVideo
from kiwi.data.dataset import EditDataset, list_clips
from kiwi.data.manifest import EditRecord
from kiwi.errors import CheckpointError
from kiwi.reading import follow_links

log = logging.getLogger(__name__)

_DIGITS = 12
"""Number of hexadecimal digits of the hash of a row."""
CHANGED_DATA_FIX = (
    "resume with the data that the run was started with; to train on other data, start a new run from this run's model "
    "folder (model.init)"
)


class DataFingerprint(NamedTuple):
    """Hashes of the training samples of manifests, in the order of their ids."""

    rows: str
    """12 digits per sample: prompt, category, caption, paths and sizes of files, and content of embedded media."""
    times: str
    """Hash of the files' modification times, which also change when a folder is copied."""
    contents: str
    """Hash of the contents of all clips, which only a cache knows; otherwise empty."""


def compute_fingerprint(dataset: EditDataset, source_indices: Sequence[int], root: Path) -> DataFingerprint:
    """Compute the fingerprint of a dataset, whose samples come from data sources with these indices.

    Args:
        root: folder that paths are hashed relative to, so that the data may be moved as a whole.
    """
    order = _list_manifest_samples(dataset, source_indices)
    states = _FileStates(root)
    ids = dataset.ids
    rows = [_hash_text(ids[i], *_describe(dataset.records[i], states))[:_DIGITS] for i in order]
    times = _hash_text(*(f"{name} {time}" for name, (_, time) in sorted(states.known.values())))
    contents = _hash_text(*(dataset.content_hashes[i] for i in order)) if dataset.content_hashes else ""
    return DataFingerprint("".join(rows), times, contents)


def require_same_data(
    dataset: EditDataset, source_indices: Sequence[int], current: DataFingerprint, saved: Mapping[str, Any]
) -> None:
    """Compare the data with those that a checkpoint was saved with, whose samples have the same ids.

    Files whose sizes are the same but whose times differ are only warned of, because copies differ from their originals
    in the same way; with a cache their contents are compared.

    Raises:
        CheckpointError: rows or files have changed; the message has the first five.
    """
    if "rows" not in saved:  # a checkpoint of an earlier release
        return
    order = _list_manifest_samples(dataset, source_indices)
    starts = range(0, len(current.rows), _DIGITS)
    is_changed = [current.rows[i : i + _DIGITS] != saved["rows"][i : i + _DIGITS] for i in starts]
    locations = [dataset.records[i].location for i, changed in zip(order, is_changed, strict=True) if changed]
    if locations:
        got = f"{len(locations)} changed samples: {', '.join(locations[:5])}{', ...' if locations[5:] else ''}"
        problem = "cannot resume: prompts or files of the training data have changed"
        raise CheckpointError(problem, code="changed-data", got=got, fix=CHANGED_DATA_FIX)
    if current.contents and saved["contents"]:
        if current.contents != saved["contents"]:
            problem = "cannot resume: files of the training data have other contents under the same names"
            raise CheckpointError(problem, code="changed-data", fix=CHANGED_DATA_FIX)
    elif current.times != saved["times"]:
        log.warning(
            "files of the training data were written again since the run was started; if they were exchanged and not "
            "only copied, the run continues on other data: start a new run instead"
        )


class _FileStates:
    """Sizes and modification times of files, each read once."""

    def __init__(self, root: Path) -> None:
        self.root = follow_links(root)
        self.known: dict[Path, tuple[str, tuple[int, int]]] = {}

    def describe(self, clip: Clip) -> str:
        """Describe a clip by its path relative to the root and its size, or by its content if it is embedded."""
        if clip.path is None:
            return clip.hash_content()
        if clip.path not in self.known:
            status = clip.path.stat()
            name = os.path.relpath(clip.path, self.root)
            self.known[clip.path] = (name, (status.st_size, status.st_mtime_ns))
        name, (size, _) = self.known[clip.path]
        return f"{name} {size}"


def identify_source(clip: Clip, root: Path) -> str | None:
    """The path of a source video relative to the root, or its content if it is embedded; None for a rendered one."""
    if clip.path is not None:
        return os.path.relpath(clip.path, root)
    return clip.hash_content() if isinstance(clip, EncodedVideo) else None


def _list_manifest_samples(dataset: EditDataset, source_indices: Sequence[int]) -> list[int]:
    """Positions of the samples of manifests, in the order of source and id, which other samples do not change."""
    positions = [i for i, record in enumerate(dataset.records) if isinstance(record, EditRecord)]
    ids = dataset.ids
    return sorted(positions, key=lambda i: (source_indices[i], ids[i]))


def _describe(record: Any, states: _FileStates) -> list[str]:
    texts = [record.instruction, record.category or "", record.caption]
    return texts + [states.describe(clip) for clip in list_clips(record)]


def _hash_text(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
