"""Ctrl-C and SIGTERM in a step, a validation and a checkpoint; a second run in the folder of a running one."""

import os
import shutil
import signal

import pytest
import torch

from kiwi.__main__ import main
from kiwi.media.run_dir import exclusive_lock
from kiwi.training.modules.editor import LitKiwi
from kiwi.training.modules.vae import LitVae
from kiwi.training.run_log import read_log
from tests.integration.conftest import editor_config, vae_config, write_yaml

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture
def argv(edit_folder, tmp_path):
    config = vae_config(edit_folder, tmp_path / "run", max_steps=4, enable_model_summary=False, logger=False)
    config |= {"previews": {"items": 0}, "quality": {"items": None}}
    return ["fit", "--config", write_yaml(tmp_path / "vae.yaml", config)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_end", "training_step", "checkpoint"])
def test_a_signal_ends_a_run_with_its_exit_code_and_a_sentence(argv, tmp_path, capsys, monkeypatch, number, hook):
    place, name = (torch, "save") if hook == "checkpoint" else (LitVae, hook)
    original = getattr(place, name)

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(place, name, interrupted, raising=False)
    assert main([*argv, "--checkpoint.every_n_train_steps=1"]) == CODES[number]
    assert "rerun the same command with --ckpt_path last" in " ".join(capsys.readouterr().err.split())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run = tmp_path / "run"
    assert not (run / "model").exists()
    assert not list(run.glob("checkpoints/.*"))


def test_a_second_run_in_a_folder_is_refused_and_deletes_nothing(argv, tmp_path, capsys):
    run = tmp_path / "run"
    unfinished = run / "checkpoints" / ".last.x.ckpt"
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()
    with exclusive_lock(run):
        assert main([*argv, "--ckpt_path", "last"]) == 2
    assert "another process is working in" in " ".join(capsys.readouterr().err.split())
    assert unfinished.exists()


def test_a_finished_run_does_not_stay_locked(argv, tmp_path):
    assert main([*argv, "--trainer.max_steps=1"]) == 0
    assert not (tmp_path / "run" / ".lock").exists()
    with exclusive_lock(tmp_path / "run"):
        pass


@pytest.mark.parametrize("place", ["file", "inside a file"])
def test_a_run_folder_that_cannot_be_made_is_refused_at_once(argv, tmp_path, place, capsys):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" if place == "file" else tmp_path / "file" / "run"
    assert main([*argv, "--trainer.default_root_dir", str(folder)]) == 2
    assert "cannot be created" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.logger=WandbLogger"],
        ["--trainer.logger=CometLogger"],
        ['--trainer.logger=[{"class_path": "lightning.pytorch.loggers.MLFlowLogger"}]'],
        ['--trainer.plugins=[{"class_path": "lightning.pytorch.plugins.XLAPrecision"}]'],
        ["--trainer.plugins=lightning.pytorch.plugins.environments.MPIEnvironment"],
        ["--trainer.callbacks+=lightning.pytorch.callbacks.BackboneFinetuning"],
        ["--trainer.callbacks+=lightning.pytorch.callbacks.BatchSizeFinder"],
        ["--trainer.strategy=deepspeed_stage_2"],
        ["--trainer.strategy=fsdp"],
        ["--trainer.max_epochs=-5"],
        ["--trainer.max_time=soon"],
        ["--trainer.accumulate_grad_batches=0"],
        ["--trainer.limit_val_batches=-1"],
    ],
)
def test_what_lightning_rejects_is_one_paragraph(argv, tmp_path, options, capsys):
    assert main([*argv, *options]) == 2
    error = capsys.readouterr().err
    assert "error:" in error
    assert "Subclass types" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("hook", ["training_step", "validation_step", "preview", "export"])
@pytest.mark.parametrize("change", ["deleted", "renamed", "replaced"])
def test_a_run_whose_folder_is_deleted_or_renamed_stops_with_one_paragraph_and_makes_no_new_one(
    argv, tmp_path, capsys, monkeypatch, change, hook
):
    run, original = tmp_path / "run", getattr(LitVae, hook)

    def change_folder(*args, **kwargs):
        run.rename(tmp_path / "moved")
        if change == "deleted":
            shutil.rmtree(tmp_path / "moved")
        elif change == "replaced":
            run.mkdir()  # by another process
        return original(*args, **kwargs)

    monkeypatch.setattr(LitVae, hook, change_folder)
    options = ["--trainer.logger=true", "--previews.items=1", "--checkpoint.every_n_train_steps=1"]
    assert main([*argv, *options, "--trainer.max_steps=2"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"the folder {run} was deleted, renamed or replaced" in error
    assert "Traceback" not in error
    assert run.exists() == (change == "replaced")
    assert not (run / "checkpoints").exists()


def test_the_last_checkpoint_is_written_beside_those_of_other_callbacks(argv, tmp_path):
    callbacks = "lightning.pytorch.callbacks."
    other = ["--trainer.callbacks+=" + callbacks + "OnExceptionCheckpoint", f"--trainer.callbacks.dirpath={tmp_path}/x"]
    assert main([*argv, *other, "--trainer.max_steps=1"]) == 0
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(("every_n_train_steps", "max_steps"), [(2, 3), (1, 4)])
def test_a_run_stopped_in_a_validation_validates_when_it_is_resumed(
    edit_folder, runs, tmp_path, monkeypatch, every_n_train_steps, max_steps
):
    """The checkpoint of that step precedes the validation; the second case stops in the validation of the last step."""
    validation_step, stop_at = LitKiwi.validation_step, max_steps // 2 * 2

    def stop(module, *args):
        if module.global_step == stop_at:
            raise KeyboardInterrupt
        return validation_step(module, *args)

    commands = []
    for name in ("unbroken", "stopped"):
        trainer = {"max_steps": max_steps, "enable_progress_bar": True}
        config = editor_config(edit_folder, tmp_path / name, runs / "vae" / "model", **trainer)
        config |= {"checkpoint": {"every_n_train_steps": every_n_train_steps}, "log": {"every_n_steps": 1}}
        commands.append(["fit", "--config", write_yaml(tmp_path / f"{name}.yaml", config), "--ckpt_path", "last"])
    with monkeypatch.context() as patch:
        patch.setattr(LitKiwi, "validation_step", stop)
        assert main(commands[1]) == 130
    assert "val/loss" not in read_log(tmp_path / "stopped")[stop_at]
    assert [main(command) for command in commands] == [0, 0]
    measured = ("samples_per_second", "memory_gib", "mfu")
    unbroken, resumed = (
        {step: {k: v for k, v in line.items() if k not in measured} for step, line in read_log(tmp_path / name).items()}
        for name in ("unbroken", "stopped")
    )
    assert resumed == unbroken
    last = torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)
    assert not last["validation_due"]
