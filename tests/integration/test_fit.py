import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kiwi.__main__ import main
from kiwi.media.image import read_image
from kiwi.media.video import probe
from kiwi.training.modules.editor import LitKiwi
from kiwi.training.run_log import read_log
from tests.integration.conftest import editor_config, write_yaml

EDITS = {
    f"val/{kind}_{name}{side}"
    for kind in ("edit", "copy")
    for name in ("psnr", "ssim")
    for side in ("", "_inside", "_outside")
}
"""Metrics of edits that a run logs if its validation samples have masks."""


def refused(capsys, *argv):
    """Run a command that must fail with one paragraph and exit code 2, and return the paragraph."""
    assert main(list(argv)) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return " ".join(message.split("error:", 1)[1].split())


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
    assert {"val/loss", "val/loss_swapped", "val/loss_blind", *EDITS} <= set(events.Tags()["scalars"])
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


def test_a_stopped_run_is_resumed_from_its_checkpoint(runs, tmp_path, edit_folder):
    vae = runs / "vae" / "model"
    config = write_yaml(tmp_path / "e.yaml", editor_config(edit_folder, tmp_path / "run", vae))
    # The same command starts a run and resumes it.
    assert main(["fit", "--config", config, "--trainer.max_steps=2", "--ckpt_path", "last"]) == 0
    assert main(["fit", "--config", config, "--ckpt_path", "last"]) == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    unbroken = torch.load(runs / "editor" / "checkpoints" / "last.ckpt", weights_only=True)
    resumed = torch.load(last, weights_only=True)
    assert resumed["global_step"] == unbroken["global_step"] == 3
    for name, tensor in unbroken["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name


def test_a_run_stopped_by_sigterm_has_its_own_exit_code_and_no_model(runs, tmp_path, edit_folder, capsys, monkeypatch):
    monkeypatch.setattr(LitKiwi, "on_train_batch_end", lambda *_: os.kill(os.getpid(), signal.SIGTERM), raising=False)
    file = write_yaml(tmp_path / "e.yaml", editor_config(edit_folder, tmp_path / "run", runs / "vae" / "model"))
    assert main(["fit", "--config", file]) == 143
    assert "stopped by SIGTERM. Fix: rerun the same command with --ckpt_path last" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (tmp_path / "run" / "model").exists()


def test_a_run_whose_last_checkpoint_is_damaged_is_resumed_from_the_one_before(runs, tmp_path, capsys):
    shutil.copytree(runs / "editor", tmp_path / "run", symlinks=True)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 0xFF  # in a tensor: torch alone would load it
    last.write_bytes(data)
    argv = ["fit", "--config", str(runs / "editor.yaml"), "--ckpt_path", "last"]
    assert main([*argv, "--trainer.default_root_dir", str(tmp_path / "run")]) == 0
    assert "damaged: last.ckpt" in capsys.readouterr().err
    unbroken = torch.load(runs / "editor" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    resumed = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in unbroken.items())


@pytest.mark.parametrize("steps", [2, 3])
def test_a_run_that_has_all_its_steps_says_so_and_does_not_change(runs, capsys, steps):
    last = runs / "editor" / "checkpoints" / "last.ckpt"
    before = last.stat()
    argv = ["fit", "--config", str(runs / "editor.yaml"), "--ckpt_path", "last"]
    assert main([*argv, f"--trainer.max_steps={steps}"]) == 0
    message = " ".join(capsys.readouterr().err.split())
    assert f"nothing to do: the run is already at step 3 (trainer.max_steps {steps}," in message
    assert (last.stat().st_ino, last.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_run_that_was_killed_before_its_export_exports_when_it_is_resumed(runs, tmp_path):
    shutil.copytree(runs / "editor", tmp_path / "run", symlinks=True)
    shutil.rmtree(tmp_path / "run" / "model")
    argv = ["fit", "--config", str(runs / "editor.yaml"), "--ckpt_path", "last"]
    assert main([*argv, "--trainer.default_root_dir", str(tmp_path / "run")]) == 0
    made, wanted = (load_file(run / "model" / "model.safetensors") for run in (tmp_path / "run", runs / "editor"))
    assert made.keys() == wanted.keys()
    assert all(torch.equal(tensor, made[name]) for name, tensor in wanted.items())


def test_a_foreign_file_in_the_model_folder_is_refused_before_training_and_kept(runs, tmp_path, capsys):
    note = tmp_path / "run" / "model" / "note.txt"
    note.parent.mkdir(parents=True)
    note.write_text("mine")
    run = ["--trainer.default_root_dir", str(tmp_path / "run")]
    assert "note.txt" in refused(capsys, "fit", "--config", str(runs / "editor.yaml"), *run)
    assert [path.name for path in (tmp_path / "run").rglob("*")] == ["model", "note.txt"]


def test_validate_prints_the_metrics_of_the_runs_last_validation(runs, tmp_path, capsys):
    argv = ["fit", "--config", str(runs / "editor.yaml"), "--trainer.default_root_dir", str(tmp_path)]
    assert main([*argv, "--trainer.max_steps=2", "--model.averaging=Ema"]) == 0
    metrics = {name: value for name, value in read_log(tmp_path)[2].items() if name.startswith("val/")}
    assert {"val/loss_blind", "val/edits", "val/edits_inside", *EDITS} <= metrics.keys()
    assert metrics["val/edits"] == metrics["val/edits_inside"] == 2
    capsys.readouterr()
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    assert main(["validate", "--config", str(tmp_path / "config.yaml"), "--ckpt_path", last]) == 0
    rows = dict(re.findall(r"(val/[\w.]+)\W+?(-?\d[\d.e-]*)", capsys.readouterr().out))
    assert {name: float(value) for name, value in rows.items()} == pytest.approx(metrics, rel=1e-6)


def test_lpips_without_its_weights_is_refused_before_training(runs, tmp_path, capsys, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    run = tmp_path / "run"
    argv = ["fit", "--config", str(runs / "editor.yaml"), "--trainer.default_root_dir", str(run)]
    message = refused(capsys, *argv, "--data.max_pixels=4096", "--quality.perceptual=Lpips")
    assert f"to {tmp_path / 'torch' / 'hub' / 'checkpoints' / 'alexnet-owt-7be5be79.pth'}" in message
    # Lightning opens TensorBoard's file first; nothing else is written, so the corrected command can use the folder.
    assert all("tfevents" in file.name for file in run.iterdir())


def test_a_folder_that_holds_a_run_is_not_overwritten(runs, capsys):
    message = refused(capsys, "fit", "--config", str(runs / "editor.yaml"))
    assert "already holds a run" in message
    assert "--ckpt_path" in message


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.config.source=NoSorce", "one of AddSource, ChannelConcatSource, NoSource, "),
        ("--quality.perceptual=Lpip", "one of Lpips, NoPerceptual (did you mean Lpips?)"),
        ("--quality.items=0", "at least 1"),
        ("--data.augmentation=Shrink", "one of NoAugmentation, ShrinkReferences"),
        ("--model.class_path=LitFoo", "one of LitKiwi, LitBase, LitVae, LitMllm"),
        ("--model.config.dit.num_heads=5", "cannot be split into 5 attention heads"),
        ("--data.batch_size=0", "data.batch_size is out of range"),
        ("--data.holdout=6", "6 of 6 source videos"),
        ("--model.train_parts=[vae]", "cannot be trained"),
    ],
)
def test_invalid_options_are_refused_with_the_choices(runs, tmp_path, capsys, option, message):
    run = tmp_path / "run"
    error = refused(
        capsys, "fit", "--config", str(runs / "editor.yaml"), "--trainer.default_root_dir", str(run), option
    )
    assert message in error
    assert not list(tmp_path.iterdir())  # the corrected command can use the same folder


@pytest.mark.parametrize(
    ("text", "message"),
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
def test_malformed_manifests_are_refused_with_their_lines(runs, edit_folder, tmp_path, capsys, text, message):
    bad = edit_folder / "bad.csv"
    bad.write_text(text)
    error = refused(
        capsys, "fit", "--config", str(runs / "editor.yaml"), "--trainer.default_root_dir", str(tmp_path / "run"),
        "--data.train", "[{type: Manifest, path: bad.csv, max_frames: 5}]",
    )  # fmt: skip
    bad.unlink()
    assert all(part in error for part in ["bad.csv", *message]), error


def test_a_checkpoint_of_another_size_is_refused(runs, tmp_path, capsys):
    wider = yaml.safe_load((runs / "editor.yaml").read_text())
    wider["model"]["config"]["dit"]["ffn_dim"] = 64
    wider["trainer"]["default_root_dir"] = str(tmp_path / "run")
    config = write_yaml(tmp_path / "wider.yaml", wider)
    last = runs / "editor" / "checkpoints" / "last.ckpt"
    message = refused(capsys, "fit", "--config", config, "--ckpt_path", str(last))
    assert "the checkpoint was saved from a different model" in message
    message = refused(capsys, "fit", "--config", config, f"--model.init={runs / 'editor' / 'model'}")
    assert "with the wrong shape" in message
    assert "dit.blocks.0.ffn.0.weight is (96, 48), not (64, 48)" in message


@pytest.mark.parametrize("content", [None, b"", b"junk" * 100])
def test_a_file_that_is_not_a_checkpoint_is_refused(runs, tmp_path, capsys, content):
    checkpoint = tmp_path / "x.ckpt"
    if content is not None:
        checkpoint.write_bytes(content)
    run = str(tmp_path / "run")
    for command, config in (("fit", runs / "editor.yaml"), ("validate", runs / "editor" / "config.yaml")):
        message = refused(
            capsys, command, "--config", str(config), "--ckpt_path", str(checkpoint), "--trainer.default_root_dir", run
        )
        assert "no checkpoint" in message or "damaged" in message


def test_validate_refuses_an_untrained_model(runs, capsys):
    assert "needs a checkpoint" in refused(capsys, "validate", "--config", str(runs / "editor" / "config.yaml"))


def test_validate_says_that_a_run_folder_has_no_last_checkpoint(runs, tmp_path, capsys):
    root = ["--trainer.default_root_dir", str(tmp_path / "run")]
    config = str(runs / "editor" / "config.yaml")
    assert main(["validate", "--config", config, "--ckpt_path", "last", *root]) == 2
    output = " ".join(capsys.readouterr().err.split())
    assert f"there is no checkpoint in {tmp_path / 'run' / 'checkpoints'}" in output
    assert "new run" not in output
    assert "--ckpt_path last" not in output


@pytest.mark.parametrize("folder", ["", "../x", ".", "checkpoints"])
def test_a_model_folder_outside_the_run_is_refused_before_training(runs, tmp_path, capsys, folder):
    root = ["--trainer.default_root_dir", str(tmp_path / "run")]
    message = refused(capsys, "fit", "--config", str(runs / "editor.yaml"), *root, f"--export.folder={folder}")
    assert "--export.folder" in message
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_into_another_runs_folder(runs, tmp_path, capsys):
    last = runs / "vae" / "checkpoints" / "last.ckpt"
    assert "already holds a run" in refused(
        capsys, "fit", "--config", str(runs / "editor.yaml"), "--ckpt_path", str(last)
    )


TIMER = '[{class_path: lightning.pytorch.callbacks.Timer, init_args: {duration: "00:01:00:00"}}]'


@pytest.mark.parametrize(
    "option", ["--trainer.logger=false", "--trainer.accumulate_grad_batches=2", f"--trainer.callbacks={TIMER}"]
)
def test_common_trainer_options_run(runs, tmp_path, option):
    assert (
        main(["fit", "--config", str(runs / "editor.yaml"), "--trainer.default_root_dir", str(tmp_path), option]) == 0
    )
    assert (tmp_path / "model" / "config.json").exists()


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("name", ["vae", "editor"])
def test_short_names_of_precisions_are_accepted(runs, tmp_path, precision, name):
    argv = ["fit", "--config", str(runs / f"{name}.yaml"), "--trainer.default_root_dir", str(tmp_path)]
    assert main([*argv, f"--trainer.precision={precision}"]) == 0
    assert (tmp_path / "model" / "config.json").exists()


def test_one_seed_option_sets_weights_and_order(runs, tmp_path):
    def weights(seed):
        run = tmp_path / str(seed)
        argv = ["fit", "--config", str(runs / "editor.yaml"), "--trainer.default_root_dir", str(run)]
        assert main([*argv, f"--seed_everything={seed}"]) == 0
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["seed_everything"] == seed
        return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    first, second = weights(1), weights(2)
    assert not torch.equal(first["editor.query.queries.video"], second["editor.query.queries.video"])


def scalars(run, tag):
    """Values that a run logged under a tag, by step; of repeated steps the last value."""
    return {event.step: event.value for event in EventAccumulator(str(run)).Reload().Scalars(tag)}


def test_two_ranks_train_like_one_with_the_batch_of_both(runs, tmp_path):
    """They validate three samples, so that one rank has two samples and the other one."""
    argv = ["fit", "--config", str(runs / "editor.yaml"), "--trainer.log_every_n_steps=1", "--data.holdout=3"]
    argv += ["--trainer.max_steps=6", "--previews.items=1", "--quality.items=3"]
    both, one = tmp_path / "both", tmp_path / "one"
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.default_root_dir", str(both)]
    done = subprocess.run(
        [sys.executable, "-m", "kiwi", *argv, *two], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "model folder: None" not in done.stderr
    tags = EventAccumulator(str(both)).Reload().Tags()["scalars"]
    assert {"val/loss", "val/loss_swapped", "val/loss_blind"} <= set(tags)
    assert main([*argv, "--data.batch_size=4", "--trainer.default_root_dir", str(one)]) == 0
    # The same samples are edited, whichever rank edits them.
    assert scalars(both, "val/edits") == scalars(one, "val/edits")
    assert set(scalars(one, "val/edits").values()) == {3}
    for name in ("edit_psnr", "edit_ssim_inside", "copy_psnr_outside"):
        assert scalars(both, f"val/{name}") == pytest.approx(scalars(one, f"val/{name}"), rel=1e-3)
    losses = scalars(one, "train/loss")
    assert len(losses) == 6
    assert scalars(both, "train/loss") == pytest.approx(losses, rel=1e-4)
    # Both ranks train on the same task kind at a step: its loss is logged at these steps only.
    for kind in ("video", "reference"):
        assert scalars(both, f"train/loss_{kind}").keys() == scalars(one, f"train/loss_{kind}").keys()
    checkpoints = (run / "checkpoints/last.ckpt" for run in (one, both))
    expected, actual = (torch.load(path, weights_only=True)["state_dict"] for path in checkpoints)
    assert all(torch.allclose(tensor, actual[name], atol=1e-5) for name, tensor in expected.items())


def test_a_missing_vae_is_refused_before_training(runs, tmp_path, capsys):
    message = refused(
        capsys, "fit", "--config", str(runs / "editor.yaml"), "--trainer.default_root_dir", str(tmp_path / "run"),
        f"--model.config.vae.path={tmp_path / 'none'}",
    )  # fmt: skip
    assert f"no VAE at {tmp_path / 'none'}" in message
