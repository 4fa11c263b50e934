"""What frozen encoders make of clips and images, on disk: computed once, and read by training instead of decoding.

    CACHE/cache.json             fingerprints of the VAE and the vision tower, and the number format
    CACHE/files.jsonl            content hashes of files, by path, size and time, so that each file is hashed once
    CACHE/shards/*.safetensors   KEY.mean and KEY.deviation (C, F, h, w) of the VAE; KEY.features (L, N, M) and
                                 KEY.read (kind, frames, height, width) of the tower; checksums in the header

A key is a hash of a file's content, the size and length it is brought to, and the encoder with its settings. Shards are
written completely or not at all, each under its own name, so that several writers may fill one cache, and a killed one
loses one shard at most. C latent channels, F latent frames, h w latent height and width; L levels of features, N visual
tokens, M the MLLM's width.
"""

from __future__ import annotations

import errno
import hashlib
import json
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
from kiwi.media.files import atomic_path, require_writable, sha256, write_json
from kiwi.media.journal import Journal
from kiwi.media.run_dir import LOCK_FILE

FORMAT_VERSION = 2
"""Version of the folder's layout and of how clips are resized: a change of either needs a new cache."""

Dtype = Literal["float16", "float32"]

Entry = LatentDistribution | VisionFeatures
"""Output of the VAE for a clip, or of the vision tower."""


class EncoderFingerprints(NamedTuple):
    """Fingerprints of the encoders whose outputs a cache keeps; empty for an encoder that it does not."""

    vae: str = ""
    mllm: str = ""
    """Of the vision tower, its settings and its limits (`MllmEncoder.vision_fingerprint`)."""


class FeatureCache:
    """An existing cache. Every entry's checksum is verified when it is read.

    Args:
        folder: made by `create`.

    Raises:
        InputError: not a cache, or one of another format.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        try:
            facts = json.loads((self.folder / "cache.json").read_text(encoding="utf-8"))
            is_readable = facts["format"] == FORMAT_VERSION
            names = EncoderFingerprints._fields
            self.encoders = EncoderFingerprints(*(str(facts.get(name, "")) for name in names))
            self.dtype: torch.dtype = getattr(torch, facts["dtype"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem, fix = f"{self.folder} is not a feature cache", "make one with `kiwi cache`"
            raise InputError(problem, code="not-a-cache", got=error, fix=fix) from error
        if not is_readable:
            problem = f"the cache {self.folder} has another format"
            raise InputError(problem, code="unknown-format", got=facts["format"], expected=FORMAT_VERSION)
        self.shards: dict[str, Path] = {}
        self.opened: dict[Path, Any] = {}
        self.unreadable: list[Path] = []
        """Shards whose header cannot be read: their entries are missing, and `verify` deletes them."""
        for path in sorted((self.folder / "shards").glob("[!.]*.safetensors")):
            try:
                with safe_open(path, framework="pt") as opened:
                    self.shards |= dict.fromkeys(dict(opened.metadata()), path)
            except (OSError, SafetensorError, TypeError):
                self.unreadable.append(path)

    @classmethod
    def create(cls, folder: Path | str, encoders: EncoderFingerprints, dtype: Dtype) -> FeatureCache:
        """Make an empty cache, or open an existing one, which may have kept fewer encoders so far.

        Args:
            folder: made if it does not exist.
            encoders: whose outputs are going to be written.
            dtype: number format of the entries; float32 trains exactly as without a cache, float16 takes half the
                space. Features of a tower that runs in bfloat16 stay in bfloat16.

        Raises:
            InputError: an existing cache was built with a different encoder or number format.
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
        """Note encoders whose outputs were not kept so far; refuse different ones."""
        kept, added = self.encoders._asdict(), encoders._asdict()
        together = {name: added[name] or kept[name] for name in kept}
        own_dtype = str(self.dtype).removeprefix("torch.")
        if own_dtype != dtype or any(kept[name] not in ("", together[name]) for name in kept):
            raise InputError(
                f"the cache {self.folder} was built with a different encoder or number format",
                code="encoder-mismatch",
                got=f"{_describe(self.encoders)}, {own_dtype}",
                expected=f"{_describe(encoders)}, {dtype}",
                fix="give another folder",
            )
        if together != kept:
            write_json(self.folder / "cache.json", {"format": FORMAT_VERSION, "dtype": dtype, **together})
            self.encoders = EncoderFingerprints(**together)

    def __contains__(self, key: str) -> bool:
        return key in self.shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getstate__(self) -> dict[str, Any]:
        """The state for another process, which opens the shards itself."""
        return self.__dict__ | {"opened": {}}

    def latents_key(self, content: str, bucket: Bucket) -> str:
        """The key of a clip's latents; empty if the cache does not keep latents.

        Args:
            content: hash of the clip's content.
            bucket: the size and length that it is brought to.
        """
        return _key("latents", self.encoders.vae, content, bucket)

    def features_key(self, content: str, bucket: Bucket | None) -> str:
        """The key of the vision features of a source, or of a reference (without a bucket); empty as `latents_key`."""
        return _key("seen", self.encoders.mllm, content, bucket)

    def latents(self, key: str) -> LatentDistribution:
        """Latents of a clip, float32.

        Raises:
            InputError: the entry is missing or damaged.
        """
        mean, deviation = self._read(key, _LATENTS)
        return LatentDistribution(mean.float(), deviation.float())

    def features(self, key: str) -> VisionFeatures:
        """Vision features of a source or reference, in the number format of the cache.

        Raises:
            InputError: the entry is missing or damaged.
        """
        features, read = self._read(key, _FEATURES)
        kind, frames, height, width = read.tolist()
        return VisionFeatures(kind, (frames, height, width), features)

    def _read(self, key: str, names: tuple[str, ...]) -> list[Tensor]:
        if key not in self.shards:
            problem = f"the cache {self.folder} lacks an entry"
            raise InputError(problem, code="missing-entry", got=key, fix="run `kiwi cache` again")
        path = self.shards[key]
        try:
            if path not in self.opened:
                self.opened[path] = safe_open(path, framework="pt")
            stored: list[Tensor] = [self.opened[path].get_tensor(f"{key}.{name}") for name in names]
            is_intact = self.opened[path].metadata()[key] == _checksum(stored)
        except (OSError, SafetensorError):
            is_intact = False
        if not is_intact:
            problem, fix = f"the cache's shard {path} is damaged", "`kiwi cache --verify` removes such shards"
            raise InputError(problem, code="damaged-file", got=f"entry {key}", fix=fix)
        return stored

    def write(self, entries: Mapping[str, Entry]) -> None:
        """Write entries as one shard; no entries make no shard.

        Raises:
            InputError: the disk is full or fails; existing shards are not affected.
        """
        if not entries:
            return
        stored = {key: self._stored(entry) for key, entry in entries.items()}
        named = {f"{key}.{name}": tensor for key, tensors in stored.items() for name, tensor in tensors.items()}
        # Named by all of its entries, because two writers may begin with the same clip.
        name = hashlib.sha256("".join(sorted(stored)).encode()).hexdigest()[:32]
        path = self.folder / "shards" / f"{name}.safetensors"
        sums = {key: _checksum(tensors.values()) for key, tensors in stored.items()}
        try:
            with atomic_path(path) as temporary:
                save_file(named, temporary, sums)
        except (OSError, SafetensorError) as error:
            fix = "free some space, then rerun the same command to resume"
            problem = f"the shard {path} could not be written"
            raise InputError(problem, code="unwritable-file", got=error, fix=fix) from error
        self.shards |= dict.fromkeys(stored, path)

    def _stored(self, entry: Entry) -> dict[str, Tensor]:
        """The tensors of an entry by their names in a shard."""
        if isinstance(entry, LatentDistribution):
            named = zip(_LATENTS, entry, strict=True)
            return {name: tensor.cpu().to(self.dtype).contiguous() for name, tensor in named}
        features = entry.features_LNM.cpu()
        features = features if features.dtype == torch.bfloat16 else features.to(self.dtype)
        return {"features": features.contiguous(), "read": torch.tensor([entry.kind, *entry.size])}

    def verify(self) -> list[Path]:
        """Read all entries, and delete damaged shards; their paths."""
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
                    self._read(key, _LATENTS if f"{key}.{_LATENTS[0]}" in names else _FEATURES)
            except (InputError, OSError, SafetensorError):
                damaged.append(path)
                path.unlink()
                for key in keys:
                    del self.shards[key]
        return damaged

    def content_hashes(self, clips: Iterable[Clip]) -> dict[Clip, str]:
        """Content hashes of clips. A file that was hashed before, and has the same size and time, is not read again."""
        clips = set(clips)
        table = Journal(self.folder / "files.jsonl", convert=_file_record)
        known = {_state_in(record): record["hash"] for record in table.read()}
        states = {path: _state_of(path) for path in sorted({clip.path for clip in clips if clip.path is not None})}
        new = [path for path, state in states.items() if state not in known]
        with ThreadPoolExecutor() as pool:
            hashes = console.progress(pool.map(sha256, new), "hashing", len(new))
            for path, content in zip(new, hashes, strict=True):
                known[states[path]] = content
                _append(table, dict(zip(_STATE, states[path], strict=True)) | {"hash": content})
        return {clip: clip.content_hash() if clip.path is None else known[states[clip.path]] for clip in clips}


_LATENTS, _FEATURES = ("mean", "deviation"), ("features", "read")
"""Names of an entry's tensors in shard files, in the order of their types' fields (`deviation`: standard deviation)."""

_STATE = ("path", "size", "modified")
"""Fields of files.jsonl that identify the state of a file; "hash" is its content's."""

FileState = tuple[str, int, int]


def _state_of(path: Path) -> FileState:
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def _state_in(record: Mapping[str, Any]) -> FileState:
    path, size, modified = (record[name] for name in _STATE)
    return path, size, modified


def _file_record(value: Any) -> Any:
    """A record of files.jsonl, whose lines were lists in the previous release; None for anything else."""
    names = (*_STATE, "hash")
    try:
        path, size, modified, content = [value[name] for name in names] if isinstance(value, dict) else value
        return dict(zip(names, (str(path), int(size), int(modified), str(content)), strict=True))
    except (KeyError, TypeError, ValueError):
        return None


def _append(table: Journal, record: Mapping[str, Any]) -> None:
    """Append to files.jsonl, unless the cache is on a read-only disk, where files are hashed again each time."""
    try:
        table.append(record)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise


def _make_folders(folder: Path) -> None:
    """Make a cache's folders, or complete those of another writer or of one that was killed."""
    require_writable(folder)
    own = {"shards", "cache.json", LOCK_FILE}
    problem, fix = f"{folder} is not a cache, and not empty", "give another folder"
    try:
        names = [item.name for item in folder.iterdir()] if folder.exists() else []
        if not all(name in own or name.startswith(".cache.") for name in names):
            raise InputError(problem, code="occupied-folder", fix=fix)
        (folder / "shards").mkdir(parents=True, exist_ok=True)
    except NotADirectoryError as error:
        raise InputError(problem, code="occupied-folder", fix=fix) from error
    except OSError as error:
        problem = f"{folder} cannot be made"
        raise InputError(problem, code="unwritable-folder", got=error.strerror, fix=fix) from error


@contextmanager
def _write_lock(folder: Path) -> Iterator[None]:
    """Wait for other writers: of two that add their encoders at the same time one would be lost."""
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if not (folder / "cache.json").exists():
            raise InputError(f"{folder} cannot be written to", code="unwritable-folder", got=error) from error
    try:  # unlocked on a read-only disk, where nobody writes, and on a file system without locks
        yield
    finally:
        lock.release()


def _key(what: str, encoder: str, content: str, bucket: Bucket | None) -> str:
    size = None if bucket is None else (bucket.frames, bucket.height, bucket.width)
    return encoder and hashlib.sha256(repr((FORMAT_VERSION, what, encoder, content, size)).encode()).hexdigest()


def _checksum(tensors: Iterable[Tensor]) -> str:
    total = 0
    for tensor in tensors:
        total = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def _describe(encoders: EncoderFingerprints) -> str:
    return ", ".join(f"{name} {fingerprint[:12] or 'none'}" for name, fingerprint in encoders._asdict().items())
