"""Precision `auto` is bf16 if the hardware has bf16 instructions, else float32; slow bf16 causes a warning."""

import logging
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader

from kiwi.errors import InputError
from kiwi.models.device import cpu_has_bf16_matmul
from kiwi.training import trainer
from kiwi.training.trainer import EveryNSteps, StepProgressBar, Trainer, has_bf16

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture
def machine(monkeypatch):
    """Sets whether the processor and the accelerators have bf16 instructions."""

    def set_to(processor, *cards):
        monkeypatch.setattr(trainer, "cpu_has_bf16_matmul", lambda: processor)
        monkeypatch.setattr(trainer, "devices", lambda: [{"bf16": bf16} for bf16 in cards])

    return set_to


@pytest.mark.parametrize(
    ("processor", "cards", "expected"),
    [
        (True, (), True),
        (False, (), False),
        (False, (True,), True),
        (True, (False,), False),
        (True, (True, False), False),
    ],
)
def test_bf16_depends_on_the_accelerators_or_on_the_processor_if_there_are_none(machine, processor, cards, expected):
    machine(processor, *cards)
    assert has_bf16() is expected


def test_accelerators_are_ignored_for_a_run_on_the_processor(machine):
    machine(False, True)
    assert has_bf16()
    assert not has_bf16(on_cpu=True)


@pytest.mark.parametrize(("processor", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_selects_the_faster_precision(machine, caplog, processor, expected):
    machine(processor)
    with caplog.at_level(logging.INFO, "kiwi"):
        assert Trainer(precision="auto", **QUIET).precision == expected
    assert expected in caplog.text


def test_slow_bf16_is_allowed_with_a_warning(machine, caplog):
    machine(False)
    assert Trainer(precision="bf16-mixed", **QUIET).precision == "bf16-mixed"
    assert "--trainer.precision auto" in caplog.text


@pytest.mark.parametrize(("reported", "expected"), [(True, True), (False, False), (None, False)])
def test_a_processor_with_unknown_instructions_has_no_bf16(monkeypatch, reported, expected):
    cpu_has_bf16_matmul.cache_clear()
    monkeypatch.setattr("kiwi.models.device.hardware", lambda: {"avx512_bf16": reported})
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: True)
    assert cpu_has_bf16_matmul() is expected
    cpu_has_bf16_matmul.cache_clear()


@pytest.mark.parametrize("precision", [None, "32-true", "64-true"])
def test_a_precision_that_is_given_is_used_without_a_message(machine, caplog, precision):
    machine(True)
    assert Trainer(precision=precision, **QUIET).precision == (precision or "32-true")
    assert not [record for record in caplog.records if record.name.startswith("kiwi")]


@pytest.mark.parametrize(
    ("first", "done", "heading"),
    [(0, 10, "training (0:05:00 left)"), (30, 30, "training (? left)"), (20, 30, "training (0:01:40 left)")],
)
def test_the_bar_shows_the_remaining_time_at_the_speed_since_the_start(monkeypatch, first, done, heading):
    bar = StepProgressBar()
    bar.started, bar.first_step = 0.0, first
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    run = SimpleNamespace(global_step=done, max_steps=40)
    assert bar.format_heading(run) == heading
    column = bar.configure_columns(run)[0]
    assert column.render(SimpleNamespace(description="Epoch 3/-2")).plain == heading
    assert column.render(SimpleNamespace(description="Validation")).plain == "Validation"


def test_a_run_that_is_resumed_at_the_end_of_an_epoch_counts_the_steps_of_the_whole_run(tmp_path):
    class RecordingBar(StepProgressBar):
        def on_train_batch_end(self, *args):
            super().on_train_batch_end(*args)
            task = self.progress.tasks[self.train_progress_bar_id]
            counts.append((task.completed, task.total))

    for steps, checkpoint in ((3, None), (5, tmp_path / "x.ckpt")):
        counts = []
        quiet = QUIET | {"enable_progress_bar": True, "enable_checkpointing": False, "default_root_dir": tmp_path}
        run = Trainer(**quiet, max_steps=steps, callbacks=RecordingBar())
        run.fit(BoringModel(), DataLoader(RandomDataset(32, 3)), ckpt_path=checkpoint, weights_only=True)
        run.save_checkpoint(tmp_path / "x.ckpt")
        assert counts == [(step, steps) for step in range(steps - len(counts) + 1, steps + 1)]
    assert len(counts) == 2


def test_a_run_that_counts_epochs_has_the_bar_of_lightning():
    run = SimpleNamespace(max_steps=-1)
    columns = [type(column) for column in StepProgressBar().configure_columns(run)]
    assert columns == [type(column) for column in RichProgressBar().configure_columns(run)]


def test_a_progress_bar_that_the_caller_passes_is_kept():
    custom_bar = TQDMProgressBar()
    for bars, options in (
        ([custom_bar], {"callbacks": custom_bar}),
        ([], {}),
        ([StepProgressBar], {"enable_progress_bar": True}),
    ):
        callbacks = Trainer(**{**QUIET, "enable_progress_bar": bool(bars), **options}).callbacks
        progress_bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
        assert [type(bar) if isinstance(bars[0], type) else bar for bar in progress_bars] == bars


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_steps", -5), ("max_steps", 10**30), ("max_epochs", 10**30), ("min_steps", -5), ("min_epochs", 10**30),
        ("val_check_interval", 0), ("val_check_interval", float("nan")), ("check_val_every_n_epoch", 0),
        ("num_sanity_val_steps", -5), ("log_every_n_steps", -1), ("accumulate_grad_batches", 0),
        ("accumulate_grad_batches", 10**30), ("limit_train_batches", 10**30), ("limit_val_batches", -1),
        ("overfit_batches", float("nan")), ("fast_dev_run", 10**30), ("gradient_clip_val", -1.0),
        ("gradient_clip_val", float("inf")), ("gradient_clip_val", 10**400), ("devices", "99999"), ("devices", -5),
        ("num_nodes", 0), ("reload_dataloaders_every_n_epochs", 10**30), ("max_time", {"days": -1}),
        ("max_time", "00:00:00:00"), ("max_time", {"weeks": 10**9}),
    ],
)  # fmt: skip
def test_numbers_that_lightning_would_wait_for_or_divide_by_are_out_of_range(name, value):
    with pytest.raises(InputError, check=lambda error: error.code == "out-of-range") as caught:
        Trainer(**{"accelerator": "cpu", "logger": False, name: value})
    assert f"trainer.{name}" in caught.value.problem


def test_intervals_of_steps_are_not_negative():
    with pytest.raises(InputError, check=lambda error: error.code == "out-of-range"):
        EveryNSteps(-1)
