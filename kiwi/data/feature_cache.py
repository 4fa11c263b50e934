"""Outputs of the frozen encoders on disk: computed once, and read by training instead of decoding and encoding.

    CACHE/cache.json             fingerprints of the VAE and the vision tower, and the dtype of the entries
    CACHE/files.jsonl            content hashes of files, by path, size and time, so that each file is hashed once
    CACHE/shards/*.safetensors   KEY.mean and KEY.deviation (C, F, h, w) from the VAE; KEY.features (L, N, M) and
                                 KEY.read (kind, frames, height, width) from the vision tower; checksums in the header

A key is a hash of a clip's content, its bucket's size and length, and the encoder with its settings. Shards are written
atomically under unique names, so several processes may fill one cache, and a killed process loses at most one shard.
Shapes: C latent channels, F latent frames, h w latent height and width; L levels of features, N visual tokens, M the
MLLM's width.
"""

from __future__ import annotations

import errno
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kiwi import console
from kiwi.data.buckets import Bucket
from kiwi.data.clips import Clip
from kiwi.encoded import LatentDistribution, VisionFeatures
from kiwi.errors import InputError
from kiwi.media.files import atomic_path, make_folder, require_writable, sha256, write_json
from kiwi.media.journal import Journal
from kiwi.media.run_dir import LOCK_FILE
from kiwi.reading import read_json

FORMAT_VERSION = 2
"""Version of the folder layout and of the resizing of clips: a change of either requires a new cache."""

Dtype = Literal["float16", "float32"]

Entry = LatentDistribution | VisionFeatures
"""The output of the VAE or of the vision tower for one clip."""


class EncoderFingerprints(NamedTuple):
    """Hashes of the weights and settings of the encoders whose outputs a cache holds; empty for other encoders."""

    vae: str = ""
    mllm: str = ""
    """Fingerprint of the MLLM's vision tower (`MllmEncoder.vision_fingerprint`)."""


class FeatureCache:
    """An existing cache, made by `create`. The checksum of an entry is verified when the entry is read.

    Raises:
        InputError: the folder is not a cache, or has another format version.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        try:
            header = read_json(self.folder / "cache.json")
            is_supported = header["format"] == FORMAT_VERSION
            names = EncoderFingerprints._fields
            self.encoders = EncoderFingerprints(*(str(header.get(name, "")) for name in names))
            self.dtype: torch.dtype = getattr(torch, header["dtype"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            message, fix = f"{self.folder} is not a feature cache", "make one with `kiwi cache`"
            raise InputError(message, code="not-a-cache", got=error, fix=fix) from error
        if not is_supported:
            message, fix = f"the cache {self.folder} has another format version", "make a new one with `kiwi cache`"
            version = header["format"]
            raise InputError(message, code="unsupported-version", got=version, expected=FORMAT_VERSION, fix=fix)
        self.shards: dict[str, Path] = {}
        self.opened: dict[Path, Any] = {}
        self.unreadable: list[Path] = []
        """Shards whose headers cannot be read; their entries count as missing, and `verify` deletes the files."""
        for path in sorted((self.folder / "shards").glob("[!.]*.safetensors")):
            try:
                with safe_open(path, framework="pt") as opened:
                    self.shards |= dict.fromkeys(dict(opened.metadata()), path)
            except (OSError, SafetensorError, TypeError):
                self.unreadable.append(path)

    @classmethod
    def create(cls, folder: Path | str, encoders: EncoderFingerprints, dtype: Dtype) -> FeatureCache:
        """Make an empty cache, or open an existing one and add encoders to it.

        With entries in float32, training is exactly as without a cache; float16 needs half the space. Features of a
        vision tower that runs in bfloat16 stay in bfloat16.

        Raises:
            InputError: an existing cache was built with a different encoder or dtype.
        """
        folder = Path(folder)
        if not (folder / "cache.json").exists():
            _make_folders(folder)
        with _write_lock(folder):
            if not (folder / "cache.json").exists():
                write_json(folder / "cache.json", {"format": FORMAT_VERSION, "dtype": dtype, **encoders._asdict()})
            cache = cls(folder)
            cache._add_encoders(encoders, dtype)
            return cache

    def _add_encoders(self, encoders: EncoderFingerprints, dtype: Dtype) -> None:
        """Add the fingerprints of new encoders to cache.json; raise InputError for an encoder that differs."""
        existing, added = self.encoders._asdict(), encoders._asdict()
        merged = {name: added[name] or existing[name] for name in existing}
        cache_dtype = str(self.dtype).removeprefix("torch.")
        if cache_dtype != dtype or any(existing[name] not in ("", merged[name]) for name in existing):
            message, fix = f"the cache {self.folder} was built with a different encoder or dtype", "give another folder"
            got, expected = f"{_describe(self.encoders)}, {cache_dtype}", f"{_describe(encoders)}, {dtype}"
            raise InputError(message, code="mismatched-cache", got=got, expected=expected, fix=fix)
        if merged != existing:
            write_json(self.folder / "cache.json", {"format": FORMAT_VERSION, "dtype": dtype, **merged})
            self.encoders = EncoderFingerprints(**merged)

    def __contains__(self, key: str) -> bool:
        return key in self.shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getstate__(self) -> dict[str, Any]:
        """State for pickling; another process opens the shards itself."""
        return self.__dict__ | {"opened": {}}

    def make_posterior_key(self, content_hash: str, bucket: Bucket) -> str:
        """Make the key of a clip resized to its bucket, for its posterior; empty if the cache holds no posteriors."""
        return _make_key("latents", self.encoders.vae, content_hash, bucket)

    def make_features_key(self, content_hash: str, bucket: Bucket | None) -> str:
        """Make the key of vision features, of a reference without a bucket; empty if the cache holds no features."""
        return _make_key("seen", self.encoders.mllm, content_hash, bucket)

    def read_posterior(self, key: str) -> LatentDistribution:
        """Read the VAE's posterior of a clip, in float32. Raises InputError if it is missing or damaged."""
        mean, std = self._read_entry(key, _POSTERIOR)
        return LatentDistribution(mean.float(), std.float())

    def read_features(self, key: str) -> VisionFeatures:
        """Read vision features, in the dtype of the cache. Raises InputError if they are missing or damaged."""
        features, input_shape = self._read_entry(key, _FEATURES)
        kind, frames, height, width = input_shape.tolist()
        return VisionFeatures(kind, (frames, height, width), features)

    def _read_entry(self, key: str, names: tuple[str, ...]) -> list[Tensor]:
        if key not in self.shards:
            message, fix = f"the cache {self.folder} lacks an entry", "run `kiwi cache` with this run's configuration"
            raise InputError(message, code="missing-entry", got=f"no {key}", fix=fix)
        path = self.shards[key]
        try:
            if path not in self.opened:
                self.opened[path] = safe_open(path, framework="pt")
            tensors: list[Tensor] = [self.opened[path].get_tensor(f"{key}.{name}") for name in names]
            is_intact = self.opened[path].metadata()[key] == _compute_checksum(tensors)
        except (OSError, SafetensorError):
            is_intact = False
        if not is_intact:
            fix = "run `kiwi cache --verify`, which deletes damaged shards, then `kiwi cache` again"
            raise InputError(f"the cache shard {path} is damaged", code="damaged-file", got=f"entry {key}", fix=fix)
        return tensors

    def write(self, entries: Mapping[str, Entry]) -> None:
        """Write entries as one shard; without entries nothing is written.

        Raises:
            InputError: the disk is full or fails; existing shards are not affected.
        """
        if not entries:
            return
        stored = {key: self._to_stored_tensors(entry) for key, entry in entries.items()}
        named = {f"{key}.{name}": tensor for key, tensors in stored.items() for name, tensor in tensors.items()}
        # The name is a hash of all keys, because two writers may start with the same clip.
        name = hashlib.sha256("".join(sorted(stored)).encode()).hexdigest()[:32]
        path = self.folder / "shards" / f"{name}.safetensors"
        checksums = {key: _compute_checksum(tensors.values()) for key, tensors in stored.items()}
        try:
            with atomic_path(path) as temporary:
                save_file(named, temporary, checksums)
        except (OSError, SafetensorError) as error:
            message, fix = f"{path} could not be written", "free some space, then rerun the same command to resume"
            raise InputError(message, code="unwritable-file", got=error, fix=fix) from error
        self.shards |= dict.fromkeys(stored, path)

    def _to_stored_tensors(self, entry: Entry) -> dict[str, Tensor]:
        """Convert an entry to tensors by their names in a shard."""
        if isinstance(entry, LatentDistribution):
            named = zip(_POSTERIOR, entry, strict=True)
            return {name: tensor.cpu().to(self.dtype).contiguous() for name, tensor in named}
        features = entry.features_LNM.cpu()
        features = features if features.dtype == torch.bfloat16 else features.to(self.dtype)
        return {"features": features.contiguous(), "read": torch.tensor([entry.kind, *entry.size])}

    def verify(self) -> list[Path]:
        """Read all entries, delete damaged shards, and return the paths of those."""
        damaged, self.unreadable = self.unreadable, []
        for path in damaged:
            path.unlink()
        keys_by_shard: dict[Path, list[str]] = {}
        for key, path in self.shards.items():
            keys_by_shard.setdefault(path, []).append(key)
        for path, keys in console.progress(keys_by_shard.items(), "verifying", len(keys_by_shard)):
            try:
                with safe_open(path, framework="pt") as opened:
                    names = set(opened.keys())
                for key in keys:
                    self._read_entry(key, _POSTERIOR if f"{key}.{_POSTERIOR[0]}" in names else _FEATURES)
            except (InputError, OSError, SafetensorError):
                damaged.append(path)
                path.unlink()
                for key in keys:
                    del self.shards[key]
        return damaged

    def hash_contents(self, clips: Iterable[Clip]) -> dict[Clip, str]:
        """Hash the content of clips; a file with a known size and modification time is not read again."""
        clips = set(clips)
        table = Journal(self.folder / "files.jsonl", convert=_convert_file_record)
        known = {FileState(*(record[name] for name in FileState._fields)): record["hash"] for record in table.read()}
        states = {path: _read_state(path) for path in sorted({clip.path for clip in clips if clip.path is not None})}
        unknown = [path for path, state in states.items() if state not in known]
        with ThreadPoolExecutor() as pool:
            hashes = console.progress(pool.map(sha256, unknown), "hashing", len(unknown))
            for path, content_hash in zip(unknown, hashes, strict=True):
                known[states[path]] = content_hash
                _append_if_writable(table, states[path]._asdict() | {"hash": content_hash})
        return {clip: clip.hash_content() if clip.path is None else known[states[clip.path]] for clip in clips}


_POSTERIOR, _FEATURES = ("mean", "deviation"), ("features", "read")
"""Names of an entry's tensors in shard files, in the order of their types' fields (`deviation`: standard deviation)."""


class FileState(NamedTuple):
    """Fields of files.jsonl that identify the state of a file; the field "hash" is the hash of its content."""

    path: str
    size: int
    modified: int


def _read_state(path: Path) -> FileState:
    status = path.stat()
    return FileState(str(path.resolve()), status.st_size, status.st_mtime_ns)


def _convert_file_record(value: Any) -> Any:
    """Convert a line of files.jsonl to a record; lines of the previous release are lists. None if it is neither."""
    names = (*FileState._fields, "hash")
    try:
        path, size, modified, content_hash = [value[name] for name in names] if isinstance(value, dict) else value
        return dict(zip(names, (str(path), int(size), int(modified), str(content_hash)), strict=True))
    except (KeyError, TypeError, ValueError):
        return None


def _append_if_writable(table: Journal, record: Mapping[str, Any]) -> None:
    """Append to files.jsonl, except on a read-only disk, where files are hashed again in every run."""
    try:
        table.append(record)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise


def _make_folders(folder: Path) -> None:
    """Make the folders of a cache, or complete those that another or a killed process has started."""
    require_writable(folder)
    names = [folder.name] if folder.is_file() else [path.name for path in folder.glob("*")]
    if not all(name in ("shards", "cache.json", LOCK_FILE) or name.startswith(".cache.") for name in names):
        raise InputError(f"{folder} is not a cache, and not empty", code="occupied-folder", fix="give another folder")
    make_folder(folder / "shards")


@contextmanager
def _write_lock(folder: Path) -> Iterator[None]:
    """Wait for other writers, since of two that add encoders at the same time, one would overwrite the other."""
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if not (folder / "cache.json").exists():
            raise InputError(f"{folder} cannot be written to", code="unwritable-folder", got=error) from error
    try:  # without a lock on read-only disks, where nothing is written, and on file systems without locks
        yield
    finally:
        lock.release()


def _make_key(kind: str, encoder: str, content_hash: str, bucket: Bucket | None) -> str:
    size = None if bucket is None else (bucket.frames, bucket.height, bucket.width)
    return encoder and hashlib.sha256(repr((FORMAT_VERSION, kind, encoder, content_hash, size)).encode()).hexdigest()


def _compute_checksum(tensors: Iterable[Tensor]) -> str:
    total = 0
    for tensor in tensors:
        total = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def _describe(encoders: EncoderFingerprints) -> str:
    return ", ".join(f"{name} {fingerprint[:12] or 'none'}" for name, fingerprint in encoders._asdict().items())
