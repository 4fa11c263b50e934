import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from kiwi.data.buckets import Bucket
from kiwi.data.clips import EncodedImage, ImageFile, VideoFile
from kiwi.data.feature_cache import EncoderFingerprints, FeatureCache
from kiwi.encoded import LatentDistribution, TaskKind, VisionFeatures
from kiwi.errors import InputError
from kiwi.media.image import EncodedMedia


def has_code(code):
    return lambda error: error.code == code


BUCKET = Bucket(TaskKind.video, 32, 48, 5, 0)


@pytest.fixture
def cache(tmp_path):
    return FeatureCache.create(tmp_path / "cache", EncoderFingerprints("vae"), "float32")


def entry(seed=0):
    torch.manual_seed(seed)
    return LatentDistribution(torch.randn(4, 2, 4, 6), torch.rand(4, 2, 4, 6))


def test_entries_are_read_back_by_another_process(cache):
    cache.write({"a": entry(0), "b": entry(1)})
    cache.write({"c": entry(2)})
    cache.write({})
    again = FeatureCache(cache.folder)
    assert len(again) == 3
    assert "a" in again
    assert "d" not in again
    for key, seed in (("a", 0), ("b", 1), ("c", 2)):
        assert all(map(torch.equal, again.read_posterior(key), entry(seed)))
    with pytest.raises(InputError, check=has_code("missing-entry")):
        again.read_posterior("d")


def test_float16_keeps_three_digits(tmp_path):
    cache = FeatureCache.create(tmp_path / "half", EncoderFingerprints("vae"), "float16")
    cache.write({"a": entry()})
    latents = cache.read_posterior("a")
    assert latents.mean.dtype == torch.float32
    assert 0 < (latents.mean - entry().mean).abs().max() < 2e-3


def test_a_key_depends_on_content_size_length_and_vae(cache, tmp_path):
    other = FeatureCache.create(tmp_path / "other", EncoderFingerprints("another vae"), "float32")
    keys = [
        cache.make_posterior_key("content", BUCKET),
        cache.make_posterior_key("other content", BUCKET),
        cache.make_posterior_key("content", BUCKET._replace(frames=1)),
        cache.make_posterior_key("content", BUCKET._replace(height=64)),
        other.make_posterior_key("content", BUCKET),
    ]
    assert len(set(keys)) == 5
    # The key does not depend on the task, since the clip's content is the same.
    assert cache.make_posterior_key("content", BUCKET._replace(task=TaskKind.reference, references=2)) == keys[0]


def test_vision_features_keep_their_size_and_kind(tmp_path):
    cache = FeatureCache.create(tmp_path / "cache", EncoderFingerprints("vae", "tower"), "float16")
    torch.manual_seed(0)
    exact = VisionFeatures(2, (4, 56, 84), torch.randn(1, 12, 8).bfloat16())
    rounded = VisionFeatures(1, (1, 28, 56), torch.randn(4, 2, 8))
    cache.write({"a": exact, "b": rounded, "c": entry()})
    again = FeatureCache(cache.folder)
    assert again.encoders == ("vae", "tower")
    features = again.read_features("a")
    assert (features.kind, features.size) == (2, (4, 56, 84))
    assert features.features_LNM.dtype == torch.bfloat16
    assert torch.equal(features.features_LNM, exact.features_LNM)
    assert torch.equal(again.read_features("b").features_LNM, rounded.features_LNM.half())
    assert again.verify() == []
    data = bytearray(again.shards["a"].read_bytes())
    data[-3] ^= 1
    again.shards["a"].write_bytes(data)
    assert FeatureCache(cache.folder).verify() == [again.shards["a"]]


def test_features_of_a_source_depend_on_its_bucket_and_those_of_a_reference_on_the_image_alone(tmp_path):
    both = FeatureCache.create(tmp_path / "both", EncoderFingerprints("vae", "tower"), "float32")
    other = FeatureCache.create(tmp_path / "other", EncoderFingerprints("vae", "another"), "float32")
    keys = [
        both.make_features_key("content", BUCKET),
        both.make_features_key("content", BUCKET._replace(frames=1)),
        both.make_features_key("content", None),
        both.make_features_key("other content", None),
        other.make_features_key("content", None),
        both.make_posterior_key("content", BUCKET),
    ]
    assert len(set(keys)) == 6
    # Without an encoder there is no key.
    alone = FeatureCache.create(tmp_path / "alone", EncoderFingerprints(mllm="tower"), "float32")
    assert alone.make_posterior_key("content", BUCKET) == ""
    assert alone.make_features_key("content", None) == keys[2]


def test_an_encoder_can_be_added_to_a_cache(cache):
    cache.write({"a": entry()})
    both = FeatureCache.create(cache.folder, EncoderFingerprints(mllm="tower"), "float32")
    assert FeatureCache(cache.folder).encoders == both.encoders == ("vae", "tower")
    assert "a" in both
    assert FeatureCache.create(cache.folder, EncoderFingerprints("vae"), "float32").encoders == ("vae", "tower")
    with pytest.raises(InputError, match=r"mllm tower.*mllm other"):
        FeatureCache.create(cache.folder, EncoderFingerprints(mllm="other"), "float32")


def test_images_inside_a_manifest_are_identified_by_their_content(cache, tmp_path):
    (tmp_path / "a.png").write_bytes(b"picture")
    file, same, other = (
        ImageFile(tmp_path / "a.png"),
        EncodedImage(EncodedMedia(b"picture", "a")),
        EncodedImage(EncodedMedia(b"another", "b")),
    )
    hashes = cache.hash_contents([file, same, other])
    assert hashes[same] == hashes[file] != hashes[other]


def test_a_cache_built_with_a_different_vae_or_format_is_rejected(cache, tmp_path):
    with pytest.raises(InputError, check=has_code("mismatched-cache")):
        FeatureCache.create(cache.folder, EncoderFingerprints("another vae"), "float32")
    with pytest.raises(InputError, check=has_code("mismatched-cache")):
        FeatureCache.create(cache.folder, EncoderFingerprints("vae"), "float16")
    facts = json.loads((cache.folder / "cache.json").read_text())
    (cache.folder / "cache.json").write_text(json.dumps(facts | {"format": 0}))
    with pytest.raises(InputError, check=has_code("unsupported-version")):
        FeatureCache(cache.folder)
    with pytest.raises(InputError, check=has_code("not-a-cache")):
        FeatureCache(tmp_path)


def test_damage_is_detected_on_reading_and_removed_by_verifying(cache):
    cache.write({"a": entry(0)})
    cache.write({"b": entry(1)})
    shard = cache.shards["a"]
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    again = FeatureCache(cache.folder)
    with pytest.raises(InputError, check=has_code("damaged-file")):
        again.read_posterior("a")
    assert again.verify() == [shard]
    assert not shard.exists()
    assert "a" not in again
    assert "b" in FeatureCache(cache.folder)
    shard.write_bytes(data[:50])  # with an unreadable header its entries count as missing
    truncated = FeatureCache(cache.folder)
    assert "a" not in truncated
    assert "b" in truncated
    assert truncated.verify() == [shard]
    assert not shard.exists()


def test_writers_that_begin_with_the_same_clip_do_not_overwrite_each_other(cache):
    cache.write({"a": entry(0), "b": entry(1)})
    FeatureCache(cache.folder).write({"a": entry(0), "c": entry(2)})
    assert {"a", "b", "c"} <= FeatureCache(cache.folder).shards.keys()


def test_a_missing_shard_is_an_error(cache):
    cache.write({"a": entry(0)})
    cache.shards["a"].unlink()
    with pytest.raises(InputError, check=has_code("damaged-file")):
        cache.read_posterior("a")


def test_a_cache_is_not_made_in_a_folder_with_other_files(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    for folder, message in (
        (tmp_path, "not empty"),
        (tmp_path / "note.txt", "not empty"),
        (tmp_path / "a/b", "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            FeatureCache.create(folder, EncoderFingerprints("vae"), "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_files_are_hashed_once_and_again_when_they_change(cache, tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"one")
    file = VideoFile(path)
    first = cache.hash_contents([file])[file]
    monkeypatch.setattr("kiwi.data.feature_cache.sha256", lambda path: "read again")
    assert cache.hash_contents([file])[file] == first
    with (cache.folder / "files.jsonl").open("a") as table:
        table.write('[1]\n{"a": 1}\nnull\n["cut sho')
    assert FeatureCache(cache.folder).hash_contents([file])[file] == first
    path.write_bytes(b"two!")
    assert cache.hash_contents([file])[file] == "read again"


def test_writers_that_begin_at_once_make_one_cache_with_all_their_encoders(tmp_path):
    code = (
        "import sys\n"
        "from kiwi.data.feature_cache import EncoderFingerprints, FeatureCache\n"
        "print(flush=True)\n"
        "sys.stdin.readline()\n"
        "for i in range(30):\n"
        "    FeatureCache.create(f'{sys.argv[1]}/{i}', EncoderFingerprints(**{sys.argv[2]: 'x'}), 'float32')\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    writers = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path, name], **pipes) for name in EncoderFingerprints._fields
    ]
    for writer in writers:
        writer.stdout.readline()  # imports are done
    for writer in writers:
        writer.communicate(b"\n", timeout=60)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert {FeatureCache(tmp_path / str(i)).encoders for i in range(30)} == {EncoderFingerprints("x", "x")}


def test_a_cache_whose_creation_was_killed_is_completed(tmp_path):
    (tmp_path / "cache" / "shards").mkdir(parents=True)
    (tmp_path / "cache" / ".cache.abc.json").write_text("{")
    assert FeatureCache.create(
        tmp_path / "cache", EncoderFingerprints("vae"), "float32"
    ).encoders == EncoderFingerprints("vae")


def test_a_full_disk_leaves_no_partial_shard(cache, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("kiwi.data.feature_cache.save_file", full)
    with pytest.raises(InputError, match=r"No space left.*rerun the same command to resume"):
        cache.write({"a": entry()})
    assert not list((cache.folder / "shards").iterdir())
    assert "a" not in cache


def test_a_cache_on_a_read_only_disk_can_be_read(cache, tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").write_bytes(b"one")
    clip, new = VideoFile(tmp_path / "clip.mp4"), VideoFile(tmp_path / "new.mp4")
    expected = cache.hash_contents([clip])
    (tmp_path / "new.mp4").write_bytes(b"two")
    opened = Path.open

    def read_only(path, mode="r", **options):
        if mode != "r" and path.is_relative_to(cache.folder):
            raise OSError(30, "Read-only file system")
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", read_only)
    hashes = cache.hash_contents([clip, new])
    assert expected.items() <= hashes.items()
    assert len(hashes) == 2
    opened_again = FeatureCache.create(cache.folder, cache.encoders, str(cache.dtype).removeprefix("torch."))
    assert opened_again.encoders == cache.encoders  # nothing is missing, so nothing is written


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


def test_file_hashes_of_the_previous_release_are_read(cache, tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").write_bytes(b"one")
    file, status = VideoFile(tmp_path / "clip.mp4"), (tmp_path / "clip.mp4").stat()
    line = [str((tmp_path / "clip.mp4").resolve()), status.st_size, status.st_mtime_ns, "hash of the list"]
    (cache.folder / "files.jsonl").write_text(json.dumps(line) + "\n")
    assert cache.hash_contents([file]) == {file: "hash of the list"}
