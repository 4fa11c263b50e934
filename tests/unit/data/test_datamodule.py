import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from kiwi.data.datamodule import EditData
from kiwi.data.feature_cache import EncoderFingerprints, FeatureCache
from kiwi.data.sample import to_pixels, to_video_tensor
from kiwi.data.sources import Manifest
from kiwi.encoded import LatentDistribution
from kiwi.errors import CheckpointError, InputError, ManifestError, MediaError
from kiwi.media.image import write_image
from kiwi.media.video import write_video


def data(folder, **options):
    options = {"train": [Manifest(path="video.csv", max_frames=5)], "multiple": 8, "batch_size": 2} | options
    return EditData(root=str(folder), max_pixels=4096, num_workers=0, **options)


def test_batches_hold_both_videos_the_instructions_and_letterboxed_references(edit_folder):
    module = data(edit_folder, train=[Manifest(path="reference.csv", max_frames=5)], batch_size=3)
    module.setup()
    (batch,) = module.train_dataloader()
    assert batch.source_BCFHW.shape == batch.target_BCFHW.shape == (3, 3, 5, 40, 56)
    assert batch.references_BRCHW.shape == (3, 1, 3, 40, 56)
    assert batch.task == "reference"
    assert batch.instructions == ["Give the square the colour of the reference."] * 3
    # The tall reference is letterboxed on white; the square is blue in the target and red in the source.
    assert (batch.references_BRCHW[:, :, :, :, 0] == 1).all()
    assert batch.target_BCFHW[:, 2].max() > 0.5 > batch.target_BCFHW[:, 0, :, 10, 2].max() - 1
    assert batch.source_BCFHW.min() >= -1
    assert batch.source_BCFHW.max() <= 1


def test_batches_without_references_have_a_reference_axis_of_length_zero(edit_folder):
    module = data(edit_folder)
    module.setup()
    assert next(iter(module.train_dataloader())).references_BRCHW.shape == (2, 0, 3, 40, 56)


def test_held_out_sources_are_in_no_training_record(edit_folder):
    manifests = [Manifest(path="video.csv", max_frames=5), Manifest(path="reference.csv", max_frames=5)]
    module = data(edit_folder, train=[*manifests, Manifest(path="video.csv", max_frames=1)], holdout=2)
    module.setup()
    train, held_out = ({r.source for r in module.datasets[name].records} for name in ("train", "validation"))
    assert len(held_out) == 2
    assert not train & held_out
    assert sum(len(module.datasets[name]) for name in ("train", "validation")) == 15


def test_the_held_out_sources_are_the_same_in_every_process(edit_folder, tmp_path, capsys):
    """Even if clips in different folders have the same name."""
    rows = ["src_video,tgt_video,prompt"]
    for index in range(5):
        (tmp_path / str(index)).mkdir()
        for name in ("source", "target"):
            shutil.copy(edit_folder / f"{index}_{name}.mp4", tmp_path / str(index) / f"{name}.mp4")
        rows.append(f"{index}/source.mp4,{index}/target.mp4,Do it.")
    (tmp_path / "video.csv").write_text("\n".join(rows))
    code = (
        "import sys; from kiwi.data.datamodule import EditData; from kiwi.data.sources import Manifest; "
        f"d = EditData(train=[Manifest(path='video.csv', max_frames=5)], root={str(tmp_path)!r}, holdout=2); "
        "d.setup(); sys.stdout.write(str(sorted(r.source.path.parent.name for r in d.datasets['validation'].records)))"
    )
    exec(code, {})
    expected = capsys.readouterr().out
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": seed}
        assert subprocess.check_output([sys.executable, "-c", code], text=True, env=env) == expected
    assert len(expected) > 4


def test_holding_everything_out_is_rejected(edit_folder):
    with pytest.raises(InputError, match="6 of 6 source videos"):
        data(edit_folder, holdout=6).setup()


def test_a_video_that_is_damaged_after_the_check_raises_an_error_with_its_line(edit_folder, tmp_path):
    """The published data loader replaces such a sample by a random other one."""
    frames = np.zeros((5, 32, 32, 3), np.uint8)
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", frames, 8)
    (tmp_path / "video.csv").write_text("src_video,tgt_video,prompt\na.mp4,b.mp4,Do it.\n")
    module = data(tmp_path, batch_size=1)
    module.setup()
    (tmp_path / "b.mp4").write_bytes(b"gone bad" * 100)
    with pytest.raises(ManifestError, match=r"video.csv, line 2: .*b.mp4"):
        list(module.train_dataloader())


def test_pixels_survive_the_conversion_to_tensors_and_back():
    frames = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(1, 2, 4, 4, 3) * 2
    assert np.array_equal(to_pixels(to_video_tensor(frames)[0]), frames[0])
    assert to_video_tensor(np.array([0, 255], np.uint8).reshape(1, 1, 1, 2, 1)).flatten().tolist() == [-1.0, 1.0]
    assert to_video_tensor(frames).dtype == torch.float32


def white_fraction(batch):
    """The fraction of each reference's canvas that is white."""
    return (batch.references_BRCHW == 1).all(dim=2).float().mean(dim=(1, 2, 3))


def test_training_shrinks_references_at_every_draw_and_validation_never_does(edit_folder):
    manifests = [Manifest(path="reference.csv", max_frames=5)]
    module = data(edit_folder, train=manifests, validation=manifests, batch_size=3)
    module.setup()
    first, again = (next(iter(module.train_dataloader())) for _ in range(2))
    assert torch.equal(first.references_BRCHW, again.references_BRCHW)
    other = data(edit_folder, train=manifests, batch_size=3, seed=1)
    other.setup()
    other_first = next(iter(other.train_dataloader()))
    assert not torch.equal(white_fraction(first).sort()[0], white_fraction(other_first).sort()[0])
    unshrunk = white_fraction(next(iter(module.val_dataloader())))
    assert (white_fraction(first) > unshrunk[0]).all()
    assert len(unshrunk.unique()) == 1


def test_a_run_cannot_be_resumed_with_different_data(edit_folder):
    module = data(edit_folder)
    module.setup()
    data(edit_folder).load_state_dict(module.state_dict())
    for options in ({"batch_size": 4}, {"seed": 1}, {"holdout": 1}):
        with pytest.raises(CheckpointError, check=lambda error: error.code == "changed-data"):
            data(edit_folder, **options).load_state_dict(module.state_dict())


@pytest.fixture
def copied_folder(edit_folder, tmp_path):
    return shutil.copytree(edit_folder, tmp_path / "copy")


def edit_prompt(folder):
    text = (folder / "video.csv").read_text()
    (folder / "video.csv").write_text(text.replace("number 3 blue", "number 3 green"))


def add_category(folder):
    lines = (folder / "video.csv").read_text().splitlines()
    (folder / "video.csv").write_text("\n".join([lines[0] + ",caption", *(line + ",A video." for line in lines[1:])]))


def exchange_file(folder):
    (folder / "3_target.mp4").unlink()
    shutil.copy(folder / "4_target.mp4", folder / "3_target.mp4")


def exchange_path(folder):
    text = (folder / "video.csv").read_text()
    (folder / "video.csv").write_text(text.replace("3_target", "4_target"))


@pytest.mark.parametrize("change", [edit_prompt, add_category, exchange_file, exchange_path])
def test_a_run_does_not_resume_with_edited_rows_or_exchanged_files(copied_folder, change):
    module = data(copied_folder)
    module.setup()
    state = module.state_dict()
    data(copied_folder).load_state_dict(state)
    change(copied_folder)
    with pytest.raises(CheckpointError, check=lambda error: error.code == "changed-data") as caught:
        data(copied_folder).load_state_dict(state)
    assert "video.csv, line" in str(caught.value)
    assert "line 5" in str(caught.value) or change is add_category


def test_a_run_resumes_with_data_that_were_moved_or_touched_and_warns_of_the_latter(copied_folder, tmp_path, caplog):
    module = data(copied_folder)
    module.setup()
    state = module.state_dict()
    data(copied_folder.rename(tmp_path / "moved")).load_state_dict(state)
    assert "written again" not in caplog.text
    (tmp_path / "moved/3_target.mp4").touch()
    data(tmp_path / "moved").load_state_dict(state)
    assert "written again" in caplog.text


def test_a_run_with_a_cache_notices_other_contents_of_the_same_size(copied_folder, tmp_path, caplog):
    def cached():
        cache = FeatureCache.create(tmp_path / "cache", EncoderFingerprints("vae"), "float16")
        module = data(copied_folder)
        module.setup()
        keys = module.datasets["train"].list_encoding_jobs(cache)
        cache.write(dict.fromkeys(keys, LatentDistribution(torch.zeros(1), torch.zeros(1))))
        module = data(copied_folder, cache=str(tmp_path / "cache"))
        module.setup()
        return module

    state = cached().state_dict()
    (copied_folder / "3_target.mp4").touch()
    cached().load_state_dict(state)
    assert "written again" not in caplog.text  # the content is the same
    content = bytearray((copied_folder / "3_target.mp4").read_bytes())
    content[-1] ^= 1
    (copied_folder / "3_target.mp4").write_bytes(content)
    with pytest.raises(CheckpointError, check=lambda error: error.code == "changed-data"):
        cached().load_state_dict(state)


def test_a_checkpoint_without_hashes_of_rows_can_be_resumed(edit_folder):
    module = data(edit_folder)
    module.setup()
    data(edit_folder).load_state_dict({"order": module.state_dict()["order"]})


def test_embedded_videos_are_trained_on_and_held_out_like_files(edit_folder, tmp_path):
    names = ("source", "target")
    rows = [
        {f"{short}_video": {"bytes": (edit_folder / f"{i}_{name}.mp4").read_bytes(), "path": None}
         for short, name in zip(("src", "tgt"), names, strict=True)} | {"prompt": f"Edit {i}."}
        for i in range(4)
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "video.parquet")
    module = data(tmp_path, train=[Manifest(path="video.parquet", max_frames=5)], holdout=1)
    module.setup()
    assert [len(module.datasets[name]) for name in ("train", "validation")] == [3, 1]
    state = module.state_dict()
    batch = next(iter(module.train_dataloader()))
    files = data(edit_folder)
    files.setup()
    pixels = {sample.instruction: sample.source_FHWC for sample in files.datasets["train"]}
    number = batch.instructions[0][5]
    assert (to_pixels(batch.source_BCFHW[0]) == pixels[f"Make the red square number {number} blue."]).all()
    rows[0]["tgt_video"], rows[1]["tgt_video"] = rows[1]["tgt_video"], rows[0]["tgt_video"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "video.parquet")
    with pytest.raises(CheckpointError, check=lambda error: error.code == "changed-data"):
        data(tmp_path, train=[Manifest(path="video.parquet", max_frames=5)], holdout=1).load_state_dict(state)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n../out.mp4\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '../out.mp4'\n",
    ],
)
@pytest.mark.parametrize("kind", ["a.m3u8", "a.mp4", "embedded"])
def test_playlists_in_manifests_never_open_other_files(edit_folder, tmp_path, text, kind):
    shutil.copy(edit_folder / "0_source.mp4", tmp_path / "out.mp4")
    folder = tmp_path / "base"
    folder.mkdir()
    row = {"src_video": text.encode(), "tgt_video": text.encode(), "prompt": "a"}
    if kind != "embedded":
        (folder / kind).write_text(text)
        row |= {"src_video": kind, "tgt_video": kind}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "p.parquet")
    with pytest.raises(MediaError, check=lambda error: error.code == "unreadable-video"):
        data(folder, train=[Manifest(path="p.parquet")]).setup()


def test_image_patterns_in_manifests_are_files_of_that_name(tmp_path):
    write_image(tmp_path / "p1.png", np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "video.csv").write_text("src_video,tgt_video,prompt\np%d.png,p1.png,a\n")
    with pytest.raises(ManifestError, check=lambda error: error.code == "invalid-rows"):
        data(tmp_path).setup()


def test_the_log_lists_the_mixture(edit_folder, caplog):
    manifests = [Manifest(path="video.csv", weight=1.0), Manifest(path="reference.csv", weight=3.0)]
    with caplog.at_level("INFO"):
        data(edit_folder, train=manifests).setup()
    assert "mixture: 75.0% reference of reference.csv, 25.0% video of video.csv" in caplog.text


def test_a_decoded_sample_has_its_mask_cropped_as_the_clip_is(edit_folder):
    module = data(edit_folder, multiple=16)
    module.setup()
    dataset = module.datasets["train"]
    index = next(i for i, record in enumerate(dataset.records) if record.source.path.name == "3_source.mp4")
    sample = dataset.decode(index)
    mask = sample.mask_FHW
    assert mask is not None
    assert (mask.dtype, mask.shape) == (bool, sample.target_FHWC.shape[:3])
    # The mask covers the square that became blue, although the clip was cropped and shrunk.
    changed = np.abs(sample.target_FHWC.astype(int) - sample.source_FHWC).sum(-1)
    assert (changed[mask] > 150).mean() > 0.95
    assert (changed[~mask] < 150).mean() > 0.99
    assert 0.1 < mask.mean() < 0.25


def test_training_and_validation_batches_read_no_masks(edit_folder, tmp_path):
    folder = tmp_path / "edits"
    shutil.copytree(edit_folder, folder)
    module = data(folder, holdout=2)
    module.setup()
    for mask in folder.glob("*_mask.mp4"):
        mask.write_bytes(b"gone bad" * 100)
    batches = [*module.train_dataloader(), *module.val_dataloader()]
    assert sum(len(batch.ids) for batch in batches) >= 6
    assert module.datasets["train"][0].mask_FHW is None
    with pytest.raises(ManifestError, match=r"video.csv, line \d: .*_mask.mp4"):
        module.datasets["train"].decode(0)


def test_a_sample_without_a_mask_has_none(edit_folder):
    module = data(edit_folder, train=[Manifest(path="reference.csv", max_frames=5)])
    module.setup()
    assert module.datasets["train"].decode(0).mask_FHW is None
