import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from kiwi.data.datamodule import EditData
from kiwi.data.sample import collate
from kiwi.data.sources import Manifest
from kiwi.models.injection import AddSource, NoSource
from kiwi.models.scaling import LearnableScale
from kiwi.training.callbacks.run_log import RunLog, _batch_shape_key
from kiwi.training.modules.editor import LitKiwi
from kiwi.training.optim import AdamW
from kiwi.training.run_log import METRICS_FILE, read_log


@pytest.fixture
def data(edit_folder):
    manifests = [Manifest(path="video.csv", max_frames=5), Manifest(path="reference.csv", max_frames=5)]
    return EditData(
        train=manifests, root=str(edit_folder), max_pixels=1024, multiple=8, batch_size=2, holdout=2, num_workers=0
    )


def run(folder, module, data, **options):
    options = {"max_steps": 6, "log_every_n_steps": 1, "val_check_interval": 3} | options
    log = options.pop("log", RunLog())
    trainer = L.Trainer(
        default_root_dir=folder, accelerator="cpu", use_distributed_sampler=False, logger=False, callbacks=[log],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
        check_val_every_n_epoch=None, **options,
    )  # fmt: skip
    trainer.fit(module, data)
    return read_log(folder)


def test_a_line_per_step_has_losses_by_task_and_noise_level_and_costs(tiny_config, data, tmp_path):
    module = LitKiwi(
        tiny_config.replace(source=AddSource(scale=LearnableScale())), optim=AdamW(lr=1e-2, warmup_steps=2)
    )
    metrics = run(tmp_path, module, data)
    assert list(metrics) == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(value) for values in metrics.values() for value in values.values())
    names = {"loss", "gradient_norm", "lr", "samples_per_second", "memory_gib", "gamma_at_0.5"}
    assert all(names <= values.keys() for values in metrics.values())
    # A step logs only its own task kind, and the bands in which its noise levels are.
    tasks = [[name for name in values if name in ("loss_video", "loss_reference")] for values in metrics.values()]
    assert {name for (name,) in tasks} == {"loss_video", "loss_reference"}
    bands = [name for values in metrics.values() for name in values if name.startswith("loss_sigma_")]
    assert 6 <= len(bands) <= 12
    assert {"loss_sigma_0.75_0.9", "loss_sigma_0.9_1"} <= set(bands)
    assert [values["lr"] for values in metrics.values()][:2] == pytest.approx([1e-2, 1e-2])
    assert {"val/loss", "val/loss_swapped", "val/loss_video", "val/loss_at_0.9"} <= metrics[3].keys()
    assert not any(name.startswith("val/") for name in metrics[2])
    assert metrics[1]["gamma_at_0.5"] == pytest.approx(0.5, abs=0.02)
    assert metrics[6]["gamma_at_0.5"] != metrics[1]["gamma_at_0.5"]


def test_accumulated_batches_of_a_step_are_one_line_with_their_mean(tiny_config, data, tmp_path):
    metrics = run(tmp_path, LitKiwi(tiny_config), data, max_steps=2, accumulate_grad_batches=3, limit_val_batches=0)
    assert list(metrics) == [1, 2]
    assert not any(
        name.startswith("gamma")
        for name in run(tmp_path / "b", LitKiwi(tiny_config.replace(source=NoSource())), data, max_steps=1)[1]
    )


def test_mfu_is_logged_where_the_devices_peak_is_known(tiny_config, data, tmp_path):
    known, unknown = (
        run(tmp_path / name, LitKiwi(tiny_config), data, max_steps=3, limit_val_batches=0, log=log)
        for name, log in (("known", RunLog(peak_tflops=1e-3)), ("unknown", RunLog()))
    )
    assert all(0 < values["mfu"] < 100 for values in known.values())
    assert not any("mfu" in values for values in unknown.values())


def test_operations_are_counted_for_each_length_of_clips_from_a_cache(data):
    data.setup()
    sample = data.datasets["train"].decode(0)
    cached = replace(sample, source_FHWC=sample.source_FHWC[:0])
    kinds = {_batch_shape_key(collate([clip])) for clip in (cached, replace(cached, size=(1, *sample.size[1:])))}
    kinds.add(_batch_shape_key(collate([cached, cached])))
    assert len(kinds) == 3


def test_lines_of_a_resumed_run_replace_those_of_the_steps_that_it_repeats(tmp_path):
    lines = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 2, "val/loss": 5.0}, {"step": 2, "loss": 3.0}]
    text = "\n".join(map(json.dumps, lines[:3])) + '\n{"step": 3, "lo\n' + json.dumps(lines[3]) + "\n"
    (tmp_path / METRICS_FILE).write_text(text)
    assert read_log(tmp_path) == {1: {"loss": 1.0}, 2: {"loss": 3.0, "val/loss": 5.0}}


def test_lines_that_are_not_metrics_are_skipped(tmp_path):
    invalid = ['{"step": "a", "loss": 1}', '{"step": 1, "loss": "b"}', "[1, 2]", '"x"', '{"loss": 2}', "\udcff\udcfe"]
    text = "\n".join([*invalid, '{"step": 2, "loss": 3}'])
    (tmp_path / METRICS_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_log(tmp_path) == {2: {"loss": 3.0}}


def test_a_line_cut_short_by_a_kill_does_not_damage_the_next(tiny_config, data, tmp_path):
    (tmp_path / METRICS_FILE).write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    metrics = run(tmp_path, LitKiwi(tiny_config), data, max_steps=1, limit_val_batches=0)
    assert list(metrics) == [1]
    assert metrics[1]["loss"] != 1.0


@pytest.mark.parametrize(("before", "after"), [(None, ""), ("", ""), ("{}\n", "{}\n"), ("{}\n{", "{}\n{\n")])
def test_a_log_is_appended_to_without_reading_it(tmp_path, monkeypatch, before, after):
    if before is not None:
        (tmp_path / METRICS_FILE).write_text(before)
    for method in ("read_bytes", "read_text"):
        monkeypatch.setattr(Path, method, lambda *args, **kwargs: pytest.fail("the whole file was read"))
    logged = {"val/loss": torch.tensor(2.0), "train/loss": torch.tensor(3.0)}
    trainer = SimpleNamespace(
        is_global_zero=True, default_root_dir=tmp_path, precision="32-true", global_step=1, callback_metrics=logged
    )
    log = RunLog(peak_tflops=1.0)
    log.on_fit_start(trainer, None)
    log.on_validation_end(trainer, None)
    log.teardown(trainer, None, "fit")
    log.on_validation_end(trainer, None)  # outside of training nothing is written
    monkeypatch.undo()
    assert (tmp_path / METRICS_FILE).read_text() == after + '{"step": 1, "val/loss": 2.0}\n'
