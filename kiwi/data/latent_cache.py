"""What the VAE's encoder says about clips, on disk: computed once, read by training instead of decoding and encoding.

    CACHE/cache.json             which VAE, which number format
    CACHE/files.jsonl            content hashes of the files seen, so that they are not read again to tell them
    CACHE/shards/*.safetensors   per clip KEY.mean and KEY.deviation, (C, F, h, w), and a checksum in the header

A clip's key is a hash of its file's content, the size and length it is brought to, and the VAE. Shards are written
whole or not at all, each under a name of its own, so that several writers may fill one cache and a killed one loses a
shard at most. C latent channels, F latent frames, h w latent height and width.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kiwi import console
from kiwi.data.buckets import Bucket
from kiwi.data.sample import Latents
from kiwi.errors import InputError
from kiwi.media.files import atomic_path, require_place, sha256, write_json

FORMAT = 1
"""Of the folder, and of how a clip is brought to its size: a change of either makes another cache."""

Dtype = Literal["float16", "float32"]


class LatentCache:
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
            self.vae, self.dtype = str(facts["vae"]), getattr(torch, facts["dtype"])
            known = facts["format"] == FORMAT
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise InputError(
                f"{self.folder} is not a latent cache", got=problem, fix="make one with `kiwi cache`"
            ) from problem
        if not known:
            raise InputError(f"{self.folder} is a cache of another format", got=facts["format"], wanted=FORMAT)
        self.shards: dict[str, Path] = {}
        self.opened: dict[Path, Any] = {}
        self.unreadable: list[Path] = []
        """Shards of which not even the header can be read: their clips are missing, and `verify` deletes them."""
        for path in sorted((self.folder / "shards").glob("[!.]*.safetensors")):
            try:
                with safe_open(path, framework="pt") as opened:
                    self.shards |= dict.fromkeys(dict(opened.metadata()), path)
            except (OSError, SafetensorError, TypeError):
                self.unreadable.append(path)

    @classmethod
    def create(cls, folder: Path | str, vae: str, dtype: Dtype) -> LatentCache:
        """An empty cache, or the one that is there.

        Args:
            folder: made if need be.
            vae: fingerprint of the VAE.
            dtype: that numbers are kept in; float32 trains as without a cache, float16 takes half the space.

        Raises:
            InputError: what is there is of another VAE or number format.
        """
        folder = Path(folder)
        if not (folder / "cache.json").exists():
            require_place(folder)
            if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
                raise InputError(f"{folder} is no cache, and not empty", fix="give another folder")
            try:
                (folder / "shards").mkdir(parents=True)
            except OSError as problem:
                raise InputError(
                    f"{folder} cannot be made", got=problem.strerror, fix="give another folder"
                ) from problem
            write_json(folder / "cache.json", {"format": FORMAT, "vae": vae, "dtype": dtype})
        found = cls(folder)
        if (found.vae, found.dtype) != (vae, getattr(torch, dtype)):
            raise InputError(
                f"the cache {folder} is of another VAE or number format",
                got=f"VAE {found.vae[:12]}, {found.dtype}",
                wanted=f"VAE {vae[:12]}, {dtype}",
                fix="give another folder",
            )
        return found

    def __contains__(self, key: str) -> bool:
        return key in self.shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getstate__(self) -> dict[str, Any]:
        """Without open files, which other processes open for themselves."""
        return self.__dict__ | {"opened": {}}

    def key(self, content: str, bucket: Bucket) -> str:
        """The key of a clip.

        Args:
            content: hash of its file.
            bucket: whose size and length it is brought to.
        """
        facts = (FORMAT, self.vae, content, bucket.frames, bucket.height, bucket.width)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def read(self, key: str) -> Latents:
        """A clip's entry.

        Raises:
            InputError: it is not there, or damaged.
        """
        if key not in self.shards:
            raise InputError(f"the cache {self.folder} has no such clip", got=key, fix="run `kiwi cache` again")
        path = self.shards[key]
        try:
            if path not in self.opened:
                self.opened[path] = safe_open(path, framework="pt")
            stored = [self.opened[path].get_tensor(f"{key}.{name}") for name in ("mean", "deviation")]
            whole = self.opened[path].metadata()[key] == _checksum(stored)
        except (OSError, SafetensorError):
            whole = False
        if not whole:
            raise InputError(
                f"the cache's shard {path} is damaged",
                got=f"clip {key}",
                fix="`kiwi cache --verify` removes such shards",
            )
        return Latents(stored[0].float(), stored[1].float())

    def write(self, entries: Mapping[str, Latents]) -> None:
        """Write entries as a shard; none for no entries."""
        if not entries:
            return
        stored = {key: [tensor.cpu().to(self.dtype).contiguous() for tensor in entry] for key, entry in entries.items()}
        named = {f"{key}.mean": mean for key, (mean, _) in stored.items()}
        named |= {f"{key}.deviation": deviation for key, (_, deviation) in stored.items()}
        # Named by all that is in it: two writers may begin with the same clip.
        name = hashlib.sha256("".join(sorted(stored)).encode()).hexdigest()[:32]
        path = self.folder / "shards" / f"{name}.safetensors"
        with atomic_path(path) as temporary:
            save_file(named, temporary, {key: _checksum(pair) for key, pair in stored.items()})
        self.shards |= dict.fromkeys(stored, path)

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
                for key in keys:
                    self.read(key)
            except InputError:
                damaged.append(path)
                path.unlink()
                for key in keys:
                    del self.shards[key]
        return damaged

    def contents(self, paths: Iterable[Path]) -> dict[Path, str]:
        """Content hashes of files; those seen before, and not changed since by size and time, are not read."""
        table = self.folder / "files.jsonl"
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines() if table.exists() else []
        known = dict(_entries(lines))
        places = {path: (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths}
        new = [path for path, place in places.items() if place not in known]
        with ThreadPoolExecutor() as pool, table.open("a", encoding="utf-8") as file:
            for path, content in zip(new, console.progress(pool.map(sha256, new), "hashing", len(new)), strict=True):
                known[places[path]] = content
                file.write(json.dumps([*places[path], content]) + "\n")
        return {path: known[place] for path, place in places.items()}


def _checksum(pair: Iterable[Tensor]) -> str:
    total = 0
    for tensor in pair:
        total = zlib.crc32(tensor.numpy().tobytes(), total)
    return f"{total:08x}"


def _entries(lines: Iterable[str]) -> Iterator[tuple[tuple[str, int, int], str]]:
    for line in lines:
        try:
            path, size, time, content = json.loads(line)
            yield (str(path), int(size), int(time)), str(content)
        except (ValueError, TypeError):
            continue  # cut short by a kill
