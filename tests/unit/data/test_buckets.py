import logging
from collections import Counter

import numpy as np
import pytest

from kiwi.data.buckets import BatchSampler, Bucket, assign
from kiwi.data.manifest import read_manifest
from kiwi.data.sample import TaskKind
from kiwi.errors import ManifestError
from kiwi.media.video import write_video

VIDEO, WIDE = Bucket(TaskKind.video, 32, 32, 5, 0), Bucket(TaskKind.video, 32, 64, 5, 0)
REFERENCE = Bucket(TaskKind.reference, 32, 32, 5, 1)
BUCKETS = [VIDEO] * 7 + [WIDE] * 4 + [REFERENCE] * 5


def epoch(sampler, number=0):
    sampler.consumed = lambda: number * len(sampler)
    return list(sampler)


def test_batches_are_homogeneous_and_every_sample_is_seen_once():
    batches = epoch(BatchSampler(BUCKETS, 2, seed=0, shuffle=True))
    assert all(len({BUCKETS[i] for i in batch}) == 1 for batch in batches)
    assert sorted(i for batch in batches for i in batch) == list(range(len(BUCKETS)))
    assert len(batches) == len(BatchSampler(BUCKETS, 2, seed=0, shuffle=True)) == 4 + 2 + 3


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, number):
        return epoch(BatchSampler(BUCKETS, 2, seed=seed, shuffle=True), number)

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)


def test_without_shuffling_the_order_is_the_manifests():
    assert epoch(BatchSampler(BUCKETS[:4], 2, seed=0, shuffle=False)) == [[0, 1], [2, 3]]


def test_processes_share_one_order_and_take_equally_many():
    whole = epoch(BatchSampler(BUCKETS, 2, seed=0, shuffle=True))
    parts = [epoch(BatchSampler(BUCKETS, 2, seed=0, shuffle=True, rank=r, world=2)) for r in range(2)]
    assert len(whole) == 9
    assert len(parts[0]) == len(parts[1]) == 5
    assert Counter(map(tuple, parts[0] + parts[1])) == Counter(map(tuple, [*whole, whole[0]]))


def test_more_processes_than_batches_still_take_one_each():
    parts = [epoch(BatchSampler(BUCKETS[:5], 2, seed=0, shuffle=True, rank=r, world=8)) for r in range(8)]
    assert [len(part) for part in parts] == [1] * 8


def test_a_resumed_epoch_goes_on_after_the_batches_that_were_consumed():
    sampler = BatchSampler(BUCKETS, 2, seed=0, shuffle=True)
    whole = epoch(sampler, 2)
    sampler.consumed = lambda: 2 * len(sampler) + 5
    assert list(sampler) == whole[5:]


def test_sizes_and_lengths_snap_and_the_log_says_so(edit_folder, caplog):
    records = read_manifest(edit_folder / "video.csv")
    with caplog.at_level(logging.INFO):
        buckets = assign(records, max_pixels=4096, max_frames=81, multiple=16)
    assert set(buckets) == {Bucket(TaskKind.video, 32, 48, 5, 0)}
    assert "6 of 6 samples: snapped from 40x56, 6 frames to 32x48, 5 frames" in caplog.text


def test_one_frame_of_a_clip_is_an_image_and_references_are_counted(edit_folder):
    images = assign(read_manifest(edit_folder / "video.csv"), max_pixels=4096, max_frames=1, multiple=8)
    assert {(b.task, b.frames) for b in images} == {(TaskKind.image, 1)}
    quadruplets = assign(read_manifest(edit_folder / "reference.csv"), max_pixels=4096, max_frames=5, multiple=8)
    assert {(b.task, b.references) for b in quadruplets} == {(TaskKind.reference, 1)}


def test_the_kind_of_an_edit_follows_from_its_references_first_and_its_frames_then():
    assert [TaskKind.of(*x) for x in ((1, 0), (5, 0), (1, 1), (5, 2))] == ["image", "video", "reference", "reference"]


def test_a_target_of_another_shape_is_refused_with_its_line(edit_folder, tmp_path):
    write_video(tmp_path / "a.mp4", np.zeros((5, 32, 32, 3), np.uint8), 8)
    write_video(tmp_path / "b.mp4", np.zeros((5, 32, 64, 3), np.uint8), 8)
    (tmp_path / "m.csv").write_text("src_video,tgt_video,prompt\na.mp4,b.mp4,Widen it.\n")
    with pytest.raises(ManifestError, match=r"m.csv, line 2.*32x32 and 32x64"):
        assign(read_manifest(tmp_path / "m.csv"), max_pixels=4096, max_frames=5, multiple=8)
