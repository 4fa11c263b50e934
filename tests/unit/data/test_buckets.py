import logging

import numpy as np
import pytest

from kiwi.data.buckets import Bucket, assign_buckets
from kiwi.data.manifest import read_manifest
from kiwi.encoded import TaskKind
from kiwi.errors import ManifestError
from kiwi.media.video import write_video


def test_sizes_and_lengths_are_snapped_and_logged(edit_folder, caplog):
    records = read_manifest(edit_folder / "video.csv")
    with caplog.at_level(logging.INFO):
        buckets = assign_buckets(records, max_pixels=4096, max_frames=81, multiple=16)
    assert set(buckets) == {Bucket(TaskKind.video, 32, 48, 5, 0)}
    assert "6 of 6 samples: snapped from 40x56, 6 frames to 32x48, 5 frames" in caplog.text


def test_one_frame_of_a_clip_is_an_image_and_references_are_counted(edit_folder):
    images = assign_buckets(read_manifest(edit_folder / "video.csv"), max_pixels=4096, max_frames=1, multiple=8)
    assert {(b.task, b.frames) for b in images} == {(TaskKind.image, 1)}
    quadruplets = assign_buckets(
        read_manifest(edit_folder / "reference.csv"), max_pixels=4096, max_frames=5, multiple=8
    )
    assert {(b.task, b.references) for b in quadruplets} == {(TaskKind.reference, 1)}


def test_the_task_kind_is_determined_by_the_references_or_else_the_frames():
    assert [TaskKind.of(*x) for x in ((1, 0), (5, 0), (1, 1), (5, 2))] == ["image", "video", "reference", "reference"]


def test_a_target_of_another_shape_is_rejected_with_its_line(edit_folder, tmp_path):
    write_video(tmp_path / "a.mp4", np.zeros((5, 32, 32, 3), np.uint8), 8)
    write_video(tmp_path / "b.mp4", np.zeros((5, 32, 64, 3), np.uint8), 8)
    (tmp_path / "m.csv").write_text("src_video,tgt_video,prompt\na.mp4,b.mp4,Widen it.\n")
    with pytest.raises(ManifestError, match=r"m.csv, line 2.*32x32 and 32x64"):
        assign_buckets(read_manifest(tmp_path / "m.csv"), max_pixels=4096, max_frames=5, multiple=8)


@pytest.mark.parametrize(("frames", "width", "described"), [(4, 32, "4 frames of 32x32"), (5, 48, "5 frames of 32x48")])
def test_a_mask_of_another_length_or_shape_is_rejected_with_its_line(tmp_path, frames, width, described):
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", np.zeros((5, 32, 32, 3), np.uint8), 8)
    write_video(tmp_path / "mask.mp4", np.zeros((frames, 32, width, 3), np.uint8), 8)
    (tmp_path / "m.csv").write_text("src_video,tgt_video,prompt,mask\na.mp4,b.mp4,Do it.,mask.mp4\n")
    with pytest.raises(ManifestError, match=f"m.csv, line 2: the mask does not match.*{described}.*5 frames of 32x32"):
        assign_buckets(read_manifest(tmp_path / "m.csv"), max_pixels=4096, max_frames=5, multiple=8)


@pytest.mark.parametrize(
    ("frames", "fps", "side", "differences"),
    [
        (5, 8, 32, ""),
        (9, 8, 32, "length"),
        (5, 8.05, 32, ""),
        (5, 25, 32, "frame rate"),
        (9, 25, 64, "length and frame rate and size"),
    ],
)
def test_pairs_that_differ_in_length_rate_or_size_are_told(tmp_path, caplog, frames, fps, side, differences):
    write_video(tmp_path / "a.mp4", np.zeros((5, 32, 32, 3), np.uint8), 8)
    write_video(tmp_path / "b.mp4", np.zeros((frames, side, side, 3), np.uint8), fps)
    (tmp_path / "m.csv").write_text("src_video,tgt_video,prompt\na.mp4,b.mp4,Do it.\n")
    with caplog.at_level(logging.INFO):
        assign_buckets(read_manifest(tmp_path / "m.csv"), max_pixels=4096, max_frames=5, multiple=8)
    assert ("differ in" in caplog.text) == bool(differences)
    assert f"differ in {differences}: paired" in caplog.text or not differences
