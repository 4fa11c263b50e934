import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from kiwi.data.buckets import Bucket
from kiwi.data.feature_cache import Encoders, FeatureCache
from kiwi.encoded import LatentDistribution, TaskKind, VisionFeatures
from kiwi.errors import InputError

BUCKET = Bucket(TaskKind.video, 32, 48, 5, 0)


@pytest.fixture
def cache(tmp_path):
    return FeatureCache.create(tmp_path / "cache", Encoders("vae"), "float32")


def entry(seed=0):
    torch.manual_seed(seed)
    return LatentDistribution(torch.randn(4, 2, 4, 6), torch.rand(4, 2, 4, 6))


def test_what_was_written_is_read_back_by_another_process_of_the_same_cache(cache):
    cache.write({"a": entry(0), "b": entry(1)})
    cache.write({"c": entry(2)})
    cache.write({})
    again = FeatureCache(cache.folder)
    assert len(again) == 3
    assert "a" in again
    assert "d" not in again
    for key, seed in (("a", 0), ("b", 1), ("c", 2)):
        assert all(torch.equal(found, wanted) for found, wanted in zip(again.latents(key), entry(seed), strict=True))
    with pytest.raises(InputError, match="lacks an entry"):
        again.latents("d")


def test_half_the_space_costs_three_digits(tmp_path):
    cache = FeatureCache.create(tmp_path / "half", Encoders("vae"), "float16")
    cache.write({"a": entry()})
    found = cache.latents("a")
    assert found.mean.dtype == torch.float32
    assert 0 < (found.mean - entry().mean).abs().max() < 2e-3


def test_a_key_tells_content_size_length_and_vae_apart(cache, tmp_path):
    other = FeatureCache.create(tmp_path / "other", Encoders("another vae"), "float32")
    keys = [
        cache.latents_key("content", BUCKET),
        cache.latents_key("other content", BUCKET),
        cache.latents_key("content", BUCKET._replace(frames=1)),
        cache.latents_key("content", BUCKET._replace(height=64)),
        other.latents_key("content", BUCKET),
    ]
    assert len(set(keys)) == 5
    # What the clip is used for does not change what it looks like.
    assert cache.latents_key("content", BUCKET._replace(task=TaskKind.reference, references=2)) == keys[0]


def test_what_a_tower_saw_is_kept_as_it_was_read(tmp_path):
    cache = FeatureCache.create(tmp_path / "cache", Encoders("vae", "tower"), "float16")
    torch.manual_seed(0)
    exact = VisionFeatures(2, (4, 56, 84), torch.randn(1, 12, 8).bfloat16())
    rounded = VisionFeatures(1, (1, 28, 56), torch.randn(4, 2, 8))
    cache.write({"a": exact, "b": rounded, "c": entry()})
    again = FeatureCache(cache.folder)
    assert again.encoders == ("vae", "tower")
    found = again.seen("a")
    assert (found.kind, found.size) == (2, (4, 56, 84))
    assert found.features_LNM.dtype == torch.bfloat16
    assert torch.equal(found.features_LNM, exact.features_LNM)
    assert torch.equal(again.seen("b").features_LNM, rounded.features_LNM.half())
    assert again.verify() == []
    data = bytearray(again.shards["a"].read_bytes())
    data[-3] ^= 1
    again.shards["a"].write_bytes(data)
    assert FeatureCache(cache.folder).verify() == [again.shards["a"]]


def test_what_is_seen_of_a_source_depends_on_its_bucket_and_of_a_reference_on_the_picture_alone(tmp_path):
    both = FeatureCache.create(tmp_path / "both", Encoders("vae", "tower"), "float32")
    other = FeatureCache.create(tmp_path / "other", Encoders("vae", "another"), "float32")
    keys = [
        both.seen_key("content", BUCKET),
        both.seen_key("content", BUCKET._replace(frames=1)),
        both.seen_key("content", None),
        both.seen_key("other content", None),
        other.seen_key("content", None),
        both.latents_key("content", BUCKET),
    ]
    assert len(set(keys)) == 6
    # What a cache does not keep has no key.
    alone = FeatureCache.create(tmp_path / "alone", Encoders(mllm="tower"), "float32")
    assert alone.latents_key("content", BUCKET) == ""
    assert alone.seen_key("content", None) == keys[2]


def test_a_cache_takes_in_an_encoder_that_it_kept_nothing_of(cache):
    cache.write({"a": entry()})
    both = FeatureCache.create(cache.folder, Encoders(mllm="tower"), "float32")
    assert FeatureCache(cache.folder).encoders == both.encoders == ("vae", "tower")
    assert "a" in both
    assert FeatureCache.create(cache.folder, Encoders("vae"), "float32").encoders == ("vae", "tower")
    with pytest.raises(InputError, match=r"another encoder.*mllm tower.*mllm other"):
        FeatureCache.create(cache.folder, Encoders(mllm="other"), "float32")


def test_pictures_inside_a_manifest_are_told_by_what_they_hold(cache, tmp_path):
    (tmp_path / "a.png").write_bytes(b"picture")
    found = cache.contents([tmp_path / "a.png", b"picture", b"another"])
    assert found[b"picture"] == found[tmp_path / "a.png"] != found[b"another"]


def test_a_cache_of_another_vae_or_format_is_refused(cache, tmp_path):
    with pytest.raises(InputError, match="another encoder"):
        FeatureCache.create(cache.folder, Encoders("another vae"), "float32")
    with pytest.raises(InputError, match="number format"):
        FeatureCache.create(cache.folder, Encoders("vae"), "float16")
    facts = json.loads((cache.folder / "cache.json").read_text())
    (cache.folder / "cache.json").write_text(json.dumps(facts | {"format": 0}))
    with pytest.raises(InputError, match="another format"):
        FeatureCache(cache.folder)
    with pytest.raises(InputError, match="is not a cache of features"):
        FeatureCache(tmp_path)


def test_damage_is_noticed_when_read_and_removed_when_verified(cache):
    cache.write({"a": entry(0)})
    cache.write({"b": entry(1)})
    shard = cache.shards["a"]
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    again = FeatureCache(cache.folder)
    with pytest.raises(InputError, match="damaged"):
        again.latents("a")
    assert again.verify() == [shard]
    assert not shard.exists()
    assert "a" not in again
    assert "b" in FeatureCache(cache.folder)
    shard.write_bytes(data[:50])  # not even its header can be read: missing, until it is made again
    cut = FeatureCache(cache.folder)
    assert "a" not in cut
    assert "b" in cut
    assert cut.verify() == [shard]
    assert not shard.exists()


def test_writers_that_begin_with_the_same_clip_do_not_take_each_others_place(cache):
    cache.write({"a": entry(0), "b": entry(1)})
    FeatureCache(cache.folder).write({"a": entry(0), "c": entry(2)})
    assert {"a", "b", "c"} <= FeatureCache(cache.folder).shards.keys()


def test_a_shard_that_is_gone_is_told(cache):
    cache.write({"a": entry(0)})
    cache.shards["a"].unlink()
    with pytest.raises(InputError, match="damaged"):
        cache.latents("a")


def test_a_cache_is_not_put_among_other_things(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    for folder, told in (
        (tmp_path, "not empty"),
        (tmp_path / "note.txt", "not empty"),
        (tmp_path / "a/b", "does not exist"),
    ):
        with pytest.raises(InputError, match=told):
            FeatureCache.create(folder, Encoders("vae"), "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_files_are_hashed_once_and_again_when_they_change(cache, tmp_path, monkeypatch):
    file = tmp_path / "clip.mp4"
    file.write_bytes(b"one")
    first = cache.contents([file])[file]
    monkeypatch.setattr("kiwi.data.feature_cache.sha256", lambda path: "read again")
    assert cache.contents([file])[file] == first
    with (cache.folder / "files.jsonl").open("a") as table:
        table.write('[1]\n{"a": 1}\nnull\n["cut sho')
    assert FeatureCache(cache.folder).contents([file])[file] == first
    file.write_bytes(b"two!")
    assert cache.contents([file])[file] == "read again"


def test_writers_that_begin_at_once_make_one_cache_and_none_is_forgotten(tmp_path):
    code = (
        "import sys\n"
        "from kiwi.data.feature_cache import Encoders, FeatureCache\n"
        "print(flush=True)\n"
        "sys.stdin.readline()\n"
        "for i in range(30):\n"
        "    FeatureCache.create(f'{sys.argv[1]}/{i}', Encoders(**{sys.argv[2]: 'x'}), 'float32')\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    writers = [subprocess.Popen([sys.executable, "-c", code, tmp_path, name], **pipes) for name in Encoders._fields]
    for writer in writers:
        writer.stdout.readline()  # imports are done
    for writer in writers:
        writer.communicate(b"\n", timeout=60)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert {FeatureCache(tmp_path / str(i)).encoders for i in range(30)} == {Encoders("x", "x")}


def test_a_cache_that_was_killed_while_it_was_made_is_made_again(tmp_path):
    (tmp_path / "cache" / "shards").mkdir(parents=True)
    (tmp_path / "cache" / ".cache.abc.json").write_text("{")
    assert FeatureCache.create(tmp_path / "cache", Encoders("vae"), "float32").encoders == Encoders("vae")


def test_a_full_disk_is_told_and_leaves_no_half_of_a_shard(cache, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("kiwi.data.feature_cache.save_file", full)
    with pytest.raises(InputError, match=r"could not be written.*No space left.*goes on where it was"):
        cache.write({"a": entry()})
    assert not list((cache.folder / "shards").iterdir())
    assert "a" not in cache


def test_a_cache_on_a_disk_that_is_only_read_is_read(cache, tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").write_bytes(b"one")
    wanted = cache.contents([tmp_path / "clip.mp4"])
    (tmp_path / "new.mp4").write_bytes(b"two")
    opened = Path.open

    def read_only(path, mode="r", **options):
        if mode != "r" and path.is_relative_to(cache.folder):
            raise OSError(30, "Read-only file system")
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", read_only)
    found = cache.contents([tmp_path / "clip.mp4", tmp_path / "new.mp4"])
    assert wanted.items() <= found.items()
    assert len(found) == 2
    there = FeatureCache.create(cache.folder, cache.encoders, str(cache.dtype).removeprefix("torch."))
    assert there.encoders == cache.encoders  # nothing is missing, so nothing is written


def test_two_writers_fill_one_cache(cache):
    code = (
        "import sys, torch\n"
        "from kiwi.data.feature_cache import FeatureCache\n"
        "from kiwi.encoded import LatentDistribution\n"
        "cache = FeatureCache(sys.argv[1])\n"
        "for i in range(20):\n"
        "    cache.write({f'{sys.argv[2]}{i}': LatentDistribution(torch.ones(1), torch.ones(1))})\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(cache.folder), name]) for name in ("a", "b")]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(FeatureCache(cache.folder)) == 40
