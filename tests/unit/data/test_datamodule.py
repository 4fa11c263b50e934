import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from kiwi.data.datamodule import EditData
from kiwi.data.sample import to_pixels, to_video_tensor
from kiwi.data.sources import Manifest
from kiwi.errors import CheckpointError, InputError, ManifestError
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
