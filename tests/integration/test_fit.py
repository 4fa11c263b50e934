import json

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kiwi.__main__ import main
from kiwi.media.image import read_image
from kiwi.media.video import probe
from tests.integration.conftest import editor_config, write_yaml


def refused(capsys, *argv):
    """Run a command that must end with one paragraph and exit code 2."""
    assert main(list(argv)) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return " ".join(told.split("error:", 1)[1].split())


def test_a_run_leaves_model_checkpoints_previews_scalars_and_its_configuration(runs):
    run = runs / "editor"
    assert {"config.json", "model.safetensors", "mllm", "vae"} <= {p.name for p in (run / "model").iterdir()}
    assert (run / "checkpoints" / "last.ckpt").is_file()
    pictures, videos = sorted(run.glob("previews/*.png")), sorted(run.glob("previews/*.mp4"))
    assert len(pictures) == len(videos) == 2
    assert read_image(pictures[0]).std() > 10
    assert probe(videos[0]).frames == 5
    assert json.loads((run / "environment.json").read_text())
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    assert {"val/loss", "val/loss_swapped", "val/loss_blind"} <= set(events.Tags()["scalars"])
    (gif, *_) = events.Images(next(tag for tag in events.Tags()["images"] if tag.startswith("preview/")))
    assert gif.encoded_image_string.startswith(b"GIF89a")


def test_the_saved_configuration_runs_again(runs, tmp_path):
    config = str(runs / "editor" / "config.yaml")
    assert main(["fit", "--config", config, "--trainer.default_root_dir", str(tmp_path / "again")]) == 0
    ours, theirs = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        for run in (runs / "editor", tmp_path / "again")
    )
    for name, tensor in ours["state_dict"].items():
        assert torch.equal(tensor, theirs["state_dict"][name]), name


def test_a_stopped_run_goes_on_from_its_checkpoint(runs, tmp_path, edit_folder):
    vae = runs / "vae" / "model"
    config = write_yaml(tmp_path / "e.yaml", editor_config(edit_folder, tmp_path / "run", vae))
    assert main(["fit", "--config", config, "--trainer.max_steps=2"]) == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert main(["fit", "--config", config, "--ckpt_path", str(last)]) == 0
    unbroken = torch.load(runs / "editor" / "checkpoints" / "last.ckpt", weights_only=True)
    resumed = torch.load(last, weights_only=True)
    assert resumed["global_step"] == unbroken["global_step"] == 3
    for name, tensor in unbroken["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name


def test_validate_prints_what_it_measured(runs, capsys):
    run = runs / "editor"
    last = str(run / "checkpoints" / "last.ckpt")
    assert main(["validate", "--config", str(run / "config.yaml"), "--ckpt_path", last]) == 0
    assert "val/loss_blind" in capsys.readouterr().out


def test_a_folder_that_holds_a_run_is_not_written_over(runs, capsys):
    told = refused(capsys, "fit", "--config", str(runs / "editor.yaml"))
    assert "already holds a run" in told
    assert "--ckpt_path" in told


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--model.config.source=NoSorce", "one of AddSource, NoSource (did you mean NoSource?)"),
        (
            "--model.config.source.scale=Sigma",
            "config.source.scale has no choice named 'Sigma'. Wanted: one of SigmaScale",
        ),
        ("--model.class_path=LitFoo", "one of LitKiwi, LitVae"),
        ("--model.config.dit.num_heads=5", "even multiple of dit.num_heads"),
        ("--model.optim.lr=fast", "Got value: fast"),
        ("--trainer.max_stepz=3", "no option --trainer.max_stepz"),
        ("--data.batch_size=0", "batch_size >= 1"),
        ("--data.holdout=6", "6 of 6 source videos"),
        ("--model.train_parts=[vae]", "cannot be trained"),
    ],
)
def test_bad_options_are_refused_with_the_choices(runs, tmp_path, capsys, option, told):
    run = tmp_path / "run"
    found = refused(
        capsys, "fit", "--config", str(runs / "editor.yaml"), "--trainer.default_root_dir", str(run), option
    )
    assert told in found
    assert not run.exists() or not list(run.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("src_video,tgt_vid,prompt\n", ["line 1", "tgt_vid", "tgt_video"]),
        (
            "src_video,tgt_video,prompt\n0_source.mp4,0_target.mp4,Fine.\n../x.mp4,0_target.mp4,Out.\n",
            ["line 3", "../x.mp4"],
        ),
        ("src_video,tgt_video,prompt\n0_source.mp4,none.mp4,Fine.\n", ["line 2", "none.mp4"]),
        ("src_video,tgt_video,prompt\n0_source.mp4,0_target.mp4,  \n", ["line 2", "prompt"]),
        (
            "src_video,tgt_video,ref_image,prompt\n0_source.mp4,0_target.mp4,1_source.mp4,Use it.\n",
            ["line 2", "1_source.mp4"],
        ),
    ],
)
def test_bad_manifests_are_refused_with_their_lines(runs, edit_folder, tmp_path, capsys, text, told):
    bad = edit_folder / "bad.csv"
    bad.write_text(text)
    found = refused(
        capsys, "fit", "--config", str(runs / "editor.yaml"), "--trainer.default_root_dir", str(tmp_path / "run"),
        "--data.train", "[{path: bad.csv, max_frames: 5}]",
    )  # fmt: skip
    bad.unlink()
    assert all(part in found for part in ["bad.csv", *told]), found


def test_a_checkpoint_of_another_size_is_refused(runs, tmp_path, capsys):
    wider = yaml.safe_load((runs / "editor.yaml").read_text())
    wider["model"]["init_args"]["config"]["dit"]["ffn_dim"] = 64
    wider["trainer"]["default_root_dir"] = str(tmp_path / "run")
    config = write_yaml(tmp_path / "wider.yaml", wider)
    last = runs / "editor" / "checkpoints" / "last.ckpt"
    assert "the checkpoint is of another model" in refused(capsys, "fit", "--config", config, "--ckpt_path", str(last))
    told = refused(capsys, "fit", "--config", config, f"--model.init={runs / 'editor' / 'model'}")
    assert "of another shape" in told
    assert "dit.blocks.0.ffn.0.weight is (96, 48), not (64, 48)" in told


def test_a_missing_vae_is_told_before_anything_starts(runs, tmp_path, capsys):
    told = refused(
        capsys, "fit", "--config", str(runs / "editor.yaml"), "--trainer.default_root_dir", str(tmp_path / "run"),
        f"--model.config.vae.path={tmp_path / 'none'}",
    )  # fmt: skip
    assert f"no VAE at {tmp_path / 'none'}" in told
