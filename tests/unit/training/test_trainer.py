"""Precision `auto`: bf16 where it is multiplied, float32 elsewhere, and a word where bf16 would crawl."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar

from kiwi.models import precision as precisions
from kiwi.models.precision import cpu_has_bf16_matmul
from kiwi.training import trainer
from kiwi.training.trainer import StepsBar, Trainer, multiplies_bf16

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture
def machine(monkeypatch):
    """Sets what the processor and the accelerators can do."""

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
def test_the_accelerators_decide_and_the_processor_where_there_are_none(machine, processor, cards, expected):
    machine(processor, *cards)
    assert multiplies_bf16() is expected


def test_a_run_on_the_processor_does_not_ask_the_accelerators(machine):
    machine(False, True)
    assert multiplies_bf16()
    assert not multiplies_bf16(on_cpu=True)


@pytest.mark.parametrize(("processor", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_takes_what_is_fast(machine, caplog, processor, expected):
    machine(processor)
    with caplog.at_level(logging.INFO, "kiwi"):
        assert Trainer(precision="auto", **QUIET).precision == expected
    assert expected in caplog.text


def test_slow_bf16_is_told_and_not_forbidden(machine, caplog):
    machine(False)
    assert Trainer(precision="bf16-mixed", **QUIET).precision == "bf16-mixed"
    assert "--trainer.precision auto" in caplog.text


@pytest.mark.parametrize(("told", "expected"), [(True, True), (False, False), (None, False)])
def test_a_processor_whose_instructions_are_not_told_has_none(monkeypatch, told, expected):
    cpu_has_bf16_matmul.cache_clear()
    monkeypatch.setattr(precisions, "hardware", lambda: {"avx512_bf16": told})
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: True)
    assert cpu_has_bf16_matmul() is expected
    cpu_has_bf16_matmul.cache_clear()


@pytest.mark.parametrize("precision", [None, "32-true", "64-true"])
def test_what_is_named_is_taken_without_a_word(machine, caplog, precision):
    machine(True)
    assert Trainer(precision=precision, **QUIET).precision == (precision or "32-true")
    assert not [record for record in caplog.records if record.name.startswith("kiwi")]


@pytest.mark.parametrize(
    ("first", "done", "told"),
    [(0, 10, "step 10/40 (0:05:00 left)"), (30, 30, "step 30/40 (? left)"), (20, 30, "step 30/40 (0:01:40 left)")],
)
def test_the_bar_tells_how_far_the_run_is_by_the_pace_since_it_began(monkeypatch, first, done, told):
    bar = StepsBar()
    bar.began, bar.first = 0.0, first
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    run = SimpleNamespace(global_step=done, max_steps=40)
    assert bar.heading(run) == told
    column = bar.configure_columns(run)[0]
    assert column.render(SimpleNamespace(description="Epoch 3/-2")).plain == told
    assert column.render(SimpleNamespace(description="Validation")).plain == "Validation"


def test_a_run_that_counts_epochs_has_the_bar_of_lightning():
    run = SimpleNamespace(max_steps=-1)
    columns = [type(one) for one in StepsBar().configure_columns(run)]
    assert columns == [type(one) for one in RichProgressBar().configure_columns(run)]


def test_a_bar_of_ones_own_is_kept_and_none_is_none():
    own = TQDMProgressBar()
    for bars, options in (([own], {"callbacks": own}), ([], {}), ([StepsBar], {"enable_progress_bar": True})):
        made = Trainer(**{**QUIET, "enable_progress_bar": bool(bars), **options})
        found = [one for one in made.callbacks if isinstance(one, ProgressBar)]
        assert [type(one) if isinstance(bars[0], type) else one for one in found] == bars
