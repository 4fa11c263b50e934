"""What frozen encoders say about clips and pictures, on disk: computed once, read by training instead of decoding.

    CACHE/cache.json             which VAE, which vision tower, which number format
    CACHE/files.jsonl            content hashes of the files seen, so that they are not read again to tell them
    CACHE/shards/*.safetensors   of the VAE KEY.mean and KEY.deviation (C, F, h, w), of the tower KEY.features (L, N, M)
                                 and KEY.read (kind, frames, height, width); checksums in the header

A key is a hash of a file's content, the size and length it is brought to, and the encoder with its settings. Shards are
written whole or not at all, each under a name of its own, so that several writers may fill one cache and a killed one
loses a shard at most. C latent channels, F latent frames, h w latent height and width; L levels of features, N visual
tokens, M the MLLM's width.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kiwi import console
from kiwi.data.buckets import Bucket
from kiwi.data.world import Rendered
from kiwi.encoded import LatentDistribution, VisionFeatures
from kiwi.errors import InputError
from kiwi.media.files import atomic_path, require_writable, sha256, write_json

FORMAT = 2
"""Of the folder, and of how a clip is brought to its size: a change of either makes another cache."""

Dtype = Literal["float16", "float32"]

Place = Path | bytes | Rendered
"""Where a clip or picture comes from."""

Entry = LatentDistribution | VisionFeatures
"""What the VAE says about a clip, or what the vision tower saw of one."""


class Encoders(NamedTuple):
    """Fingerprints of what fills a cache; empty: the cache keeps nothing of it."""

    vae: str = ""
    mllm: str = ""
    """Of the vision tower, its settings and the limits (`MllmEncoder.vision_fingerprint`)."""


class FeatureCache:
    """A cache that is there. Reading verifies every entry's checksum.

    Args:
        folder: made by `create`.

    Raises:
        InputError: no cache, or one of another format.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        try:
            facts = json.loads((self.folder / "cache.json").read_text(encoding="utf-8"))
            known = facts["format"] == FORMAT
            self.encoders = Encoders(*(str(facts.get(name, "")) for name in Encoders._fields))
            self.dtype: torch.dtype = getattr(torch, facts["dtype"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise InputError(
                f"{self.folder} is not a cache of features", got=problem, fix="make one with `kiwi cache`"
            ) from problem
        if not known:
            raise InputError(f"{self.folder} is a cache of another format", got=facts["format"], wanted=FORMAT)
        self.shards: dict[str, Path] = {}
        self.opened: dict[Path, Any] = {}
        self.unreadable: list[Path] = []
        """Shards of which not even the header can be read: their entries are missing, and `verify` deletes them."""
        for path in sorted((self.folder / "shards").glob("[!.]*.safetensors")):
            try:
                with safe_open(path, framework="pt") as opened:
                    self.shards |= dict.fromkeys(dict(opened.metadata()), path)
            except (OSError, SafetensorError, TypeError):
                self.unreadable.append(path)

    @classmethod
    def create(cls, folder: Path | str, encoders: Encoders, dtype: Dtype) -> FeatureCache:
        """An empty cache, or the one that is there, which may be of fewer encoders so far.

        Args:
            folder: made if need be.
            encoders: that are to fill it.
            dtype: that numbers are kept in; float32 trains as without a cache, float16 takes half the space. A tower
                that runs at bfloat16 keeps to that.

        Raises:
            InputError: what is there is of another encoder or number format.
        """
        folder = Path(folder)
        if not (folder / "cache.json").exists():
            _begin(folder)
        with _alone(folder):
            return cls._agreed(folder, encoders, dtype)

    @classmethod
    def _agreed(cls, folder: Path, encoders: Encoders, dtype: Dtype) -> FeatureCache:
        if not (folder / "cache.json").exists():
            write_json(folder / "cache.json", {"format": FORMAT, "dtype": dtype, **encoders._asdict()})
        found = cls(folder)
        known, wanted = found.encoders._asdict(), encoders._asdict()
        together = {name: wanted[name] or known[name] for name in known}
        if found.dtype != getattr(torch, dtype) or any(known[name] not in ("", together[name]) for name in known):
            raise InputError(
                f"the cache {folder} is of another encoder or number format",
                got=f"{_told(found.encoders)}, {str(found.dtype).removeprefix('torch.')}",
                wanted=f"{_told(encoders)}, {dtype}",
                fix="give another folder",
            )
        if together != known:
            write_json(folder / "cache.json", {"format": FORMAT, "dtype": dtype, **together})
            found.encoders = Encoders(**together)
        return found

    def __contains__(self, key: str) -> bool:
        return key in self.shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getstate__(self) -> dict[str, Any]:
        """Without open files, which other processes open for themselves."""
        return self.__dict__ | {"opened": {}}

    def latents_key(self, content: str, bucket: Bucket) -> str:
        """The key of what the VAE says about a clip; empty if it is not kept.

        Args:
            content: hash of its file.
            bucket: whose size and length it is brought to.
        """
        return _key("latents", self.encoders.vae, content, bucket)

    def seen_key(self, content: str, bucket: Bucket | None) -> str:
        """The key of what the vision tower saw of a source, or of a reference (without a bucket), likewise."""
        return _key("seen", self.encoders.mllm, content, bucket)

    def latents(self, key: str) -> LatentDistribution:
        """What the VAE says about a clip, float32.

        Raises:
            InputError: it is not there, or damaged.
        """
        mean, deviation = self._read(key, _LATENTS)
        return LatentDistribution(mean.float(), deviation.float())

    def seen(self, key: str) -> VisionFeatures:
        """What the vision tower saw of a picture, as it was kept.

        Raises:
            InputError: it is not there, or damaged.
        """
        features, read = self._read(key, _SEEN)
        kind, frames, height, width = read.tolist()
        return VisionFeatures(kind, (frames, height, width), features)

    def _read(self, key: str, names: tuple[str, ...]) -> list[Tensor]:
        if key not in self.shards:
            raise InputError(f"the cache {self.folder} lacks an entry", got=key, fix="run `kiwi cache` again")
        path = self.shards[key]
        try:
            if path not in self.opened:
                self.opened[path] = safe_open(path, framework="pt")
            stored: list[Tensor] = [self.opened[path].get_tensor(f"{key}.{name}") for name in names]
            whole = self.opened[path].metadata()[key] == _checksum(stored)
        except (OSError, SafetensorError):
            whole = False
        if not whole:
            raise InputError(
                f"the cache's shard {path} is damaged",
                got=f"entry {key}",
                fix="`kiwi cache --verify` removes such shards",
            )
        return stored

    def write(self, entries: Mapping[str, Entry]) -> None:
        """Write entries as a shard; none for no entries.

        Raises:
            InputError: the disk is full or fails; shards written before stay as they are.
        """
        if not entries:
            return
        stored = {key: self._stored(entry) for key, entry in entries.items()}
        named = {f"{key}.{name}": tensor for key, tensors in stored.items() for name, tensor in tensors.items()}
        # Named by all that is in it: two writers may begin with the same clip.
        name = hashlib.sha256("".join(sorted(stored)).encode()).hexdigest()[:32]
        path = self.folder / "shards" / f"{name}.safetensors"
        sums = {key: _checksum(tensors.values()) for key, tensors in stored.items()}
        try:
            with atomic_path(path) as temporary:
                save_file(named, temporary, sums)
        except (OSError, SafetensorError) as problem:
            raise InputError(
                f"the shard {path} could not be written",
                got=problem,
                fix="free space, then the same command goes on where it was",
            ) from problem
        self.shards |= dict.fromkeys(stored, path)

    def _stored(self, entry: Entry) -> dict[str, Tensor]:
        """The tensors of an entry, by the names that they are kept under."""
        if isinstance(entry, LatentDistribution):
            kept = zip(_LATENTS, entry, strict=True)
            return {name: tensor.cpu().to(self.dtype).contiguous() for name, tensor in kept}
        features = entry.features_LNM.cpu()
        features = features if features.dtype == torch.bfloat16 else features.to(self.dtype)
        return {"features": features.contiguous(), "read": torch.tensor([entry.kind, *entry.size])}

    def verify(self) -> list[Path]:
        """Read everything; damaged shards are deleted, and named."""
        damaged, self.unreadable = self.unreadable, []
        for path in damaged:
            path.unlink()
        held: dict[Path, list[str]] = {}
        for key, path in self.shards.items():
            held.setdefault(path, []).append(key)
        for path, keys in console.progress(held.items(), "verifying", len(held)):
            try:
                with safe_open(path, framework="pt") as opened:
                    kept = set(opened.keys())
                for key in keys:
                    self._read(key, _LATENTS if f"{key}.{_LATENTS[0]}" in kept else _SEEN)
            except (InputError, OSError, SafetensorError):
                damaged.append(path)
                path.unlink()
                for key in keys:
                    del self.shards[key]
        return damaged

    def contents(self, files: Iterable[Place]) -> dict[Place, str]:
        """Content hashes of files, or of what they hold; those seen before, unchanged in size and time, are not read.

        Args:
            files: paths, encoded images, or what is drawn.
        """
        files = set(files)
        held: dict[Place, str] = {file: hashlib.sha256(file).hexdigest() for file in files if isinstance(file, bytes)}
        held |= {file: file.content() for file in files if isinstance(file, Rendered)}
        table = self.folder / "files.jsonl"
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines() if table.exists() else []
        known = dict(_entries(lines))
        paths = sorted(file for file in files if isinstance(file, Path))
        places = {path: (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths}
        new = [path for path, place in places.items() if place not in known]
        with ThreadPoolExecutor() as pool, _appended(table) as file:
            for path, content in zip(new, console.progress(pool.map(sha256, new), "hashing", len(new)), strict=True):
                known[places[path]] = content
                file.write(json.dumps([*places[path], content]) + "\n")
        return held | {path: known[place] for path, place in places.items()}


_LOCK = ".lock"
_LATENTS, _SEEN = LatentDistribution._fields, ("features", "read")
"""Names of an entry's tensors."""


def _appended(table: Path) -> IO[str]:
    """The table, to add to; nowhere, where it cannot be: a cache that is filled may lie on a disk that is only read."""
    try:
        return table.open("a", encoding="utf-8")
    except OSError:
        return Path(os.devnull).open("a", encoding="utf-8")


def _begin(folder: Path) -> None:
    """Make a cache's folders, or take up what another writer, or one that was killed, has made of them."""
    require_writable(folder)
    begun = {"shards", "cache.json", _LOCK}
    try:
        held = [item.name for item in folder.iterdir()] if folder.exists() else []
        if not all(name in begun or name.startswith(".cache.") for name in held):
            raise InputError(f"{folder} is no cache, and not empty", fix="give another folder")
        (folder / "shards").mkdir(parents=True, exist_ok=True)
    except NotADirectoryError as problem:
        raise InputError(f"{folder} is no cache, and not empty", fix="give another folder") from problem
    except OSError as problem:
        raise InputError(f"{folder} cannot be made", got=problem.strerror, fix="give another folder") from problem


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Run a block while no other writer does: of two that note their encoders at once one would be forgotten."""
    try:
        file = (folder / _LOCK).open("w")
    except OSError as problem:
        if (folder / "cache.json").exists():  # on a disk that is only read, where nobody else writes either
            yield
            return
        raise InputError(f"{folder} cannot be written to", got=problem.strerror) from problem
    with file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _key(what: str, encoder: str, content: str, bucket: Bucket | None) -> str:
    size = None if bucket is None else (bucket.frames, bucket.height, bucket.width)
    return encoder and hashlib.sha256(repr((FORMAT, what, encoder, content, size)).encode()).hexdigest()


def _checksum(tensors: Iterable[Tensor]) -> str:
    total = 0
    for tensor in tensors:
        total = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def _told(encoders: Encoders) -> str:
    return ", ".join(f"{name} {told[:12] or 'none'}" for name, told in encoders._asdict().items())


def _entries(lines: Iterable[str]) -> Iterator[tuple[tuple[str, int, int], str]]:
    for line in lines:
        try:
            path, size, time, content = json.loads(line)
            yield (str(path), int(size), int(time)), str(content)
        except (ValueError, TypeError):
            continue  # cut short by a kill
