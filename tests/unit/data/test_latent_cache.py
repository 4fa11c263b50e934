import json
import subprocess
import sys

import pytest
import torch

from kiwi.data.buckets import Bucket
from kiwi.data.latent_cache import LatentCache
from kiwi.data.sample import Latents, TaskKind
from kiwi.errors import InputError

BUCKET = Bucket(TaskKind.video, 32, 48, 5, 0)


@pytest.fixture
def cache(tmp_path):
    return LatentCache.create(tmp_path / "cache", "vae", "float32")


def entry(seed=0):
    torch.manual_seed(seed)
    return Latents(torch.randn(4, 2, 4, 6), torch.rand(4, 2, 4, 6))


def test_what_was_written_is_read_back_by_another_process_of_the_same_cache(cache):
    cache.write({"a": entry(0), "b": entry(1)})
    cache.write({"c": entry(2)})
    cache.write({})
    again = LatentCache(cache.folder)
    assert len(again) == 3
    assert "a" in again
    assert "d" not in again
    for key, seed in (("a", 0), ("b", 1), ("c", 2)):
        assert all(torch.equal(found, wanted) for found, wanted in zip(again.read(key), entry(seed), strict=True))
    with pytest.raises(InputError, match="no such clip"):
        again.read("d")


def test_half_the_space_costs_three_digits(tmp_path):
    cache = LatentCache.create(tmp_path / "half", "vae", "float16")
    cache.write({"a": entry()})
    found = cache.read("a")
    assert found.mean.dtype == torch.float32
    assert 0 < (found.mean - entry().mean).abs().max() < 2e-3


def test_a_key_tells_content_size_length_and_vae_apart(cache, tmp_path):
    other = LatentCache.create(tmp_path / "other", "another vae", "float32")
    keys = [
        cache.key("content", BUCKET),
        cache.key("other content", BUCKET),
        cache.key("content", BUCKET._replace(frames=1)),
        cache.key("content", BUCKET._replace(height=64)),
        other.key("content", BUCKET),
    ]
    assert len(set(keys)) == 5
    # What the clip is used for does not change what it looks like.
    assert cache.key("content", BUCKET._replace(task=TaskKind.reference, references=2)) == keys[0]


def test_a_cache_of_another_vae_or_format_is_refused(cache, tmp_path):
    with pytest.raises(InputError, match="another VAE"):
        LatentCache.create(cache.folder, "another vae", "float32")
    with pytest.raises(InputError, match="number format"):
        LatentCache.create(cache.folder, "vae", "float16")
    facts = json.loads((cache.folder / "cache.json").read_text())
    (cache.folder / "cache.json").write_text(json.dumps(facts | {"format": 0}))
    with pytest.raises(InputError, match="another format"):
        LatentCache(cache.folder)
    with pytest.raises(InputError, match="is not a latent cache"):
        LatentCache(tmp_path)


def test_damage_is_noticed_when_read_and_removed_when_verified(cache):
    cache.write({"a": entry(0)})
    cache.write({"b": entry(1)})
    shard = cache.shards["a"]
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    again = LatentCache(cache.folder)
    with pytest.raises(InputError, match="damaged"):
        again.read("a")
    assert again.verify() == [shard]
    assert not shard.exists()
    assert "a" not in again
    assert "b" in LatentCache(cache.folder)
    shard.write_bytes(data[:50])  # not even its header can be read: missing, until it is made again
    cut = LatentCache(cache.folder)
    assert "a" not in cut
    assert "b" in cut
    assert cut.verify() == [shard]
    assert not shard.exists()


def test_writers_that_begin_with_the_same_clip_do_not_take_each_others_place(cache):
    cache.write({"a": entry(0), "b": entry(1)})
    LatentCache(cache.folder).write({"a": entry(0), "c": entry(2)})
    assert {"a", "b", "c"} <= LatentCache(cache.folder).shards.keys()


def test_a_shard_that_is_gone_is_told(cache):
    cache.write({"a": entry(0)})
    cache.shards["a"].unlink()
    with pytest.raises(InputError, match="damaged"):
        cache.read("a")


def test_a_cache_is_not_put_among_other_things(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    for folder, told in (
        (tmp_path, "not empty"),
        (tmp_path / "note.txt", "not empty"),
        (tmp_path / "a/b", "does not exist"),
    ):
        with pytest.raises(InputError, match=told):
            LatentCache.create(folder, "vae", "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_files_are_hashed_once_and_again_when_they_change(cache, tmp_path, monkeypatch):
    file = tmp_path / "clip.mp4"
    file.write_bytes(b"one")
    first = cache.contents([file])[file]
    monkeypatch.setattr("kiwi.data.latent_cache.sha256", lambda path: "read again")
    assert cache.contents([file])[file] == first
    with (cache.folder / "files.jsonl").open("a") as table:
        table.write('[1]\n{"a": 1}\nnull\n["cut sho')
    assert LatentCache(cache.folder).contents([file])[file] == first
    file.write_bytes(b"two!")
    assert cache.contents([file])[file] == "read again"


def test_two_writers_fill_one_cache(cache):
    code = (
        "import sys, torch\n"
        "from kiwi.data.latent_cache import LatentCache\n"
        "from kiwi.data.sample import Latents\n"
        "cache = LatentCache(sys.argv[1])\n"
        "for i in range(20):\n"
        "    cache.write({f'{sys.argv[2]}{i}': Latents(torch.ones(1), torch.ones(1))})\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(cache.folder), name]) for name in ("a", "b")]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(LatentCache(cache.folder)) == 40
