"""The sandbox as a measurement of studies: its options out of a file, and its scores out of a folder."""

import json
from pathlib import Path

import pytest

from kiwi.errors import InputError
from kiwi.evaluation.sandbox_measure import SCORES, SandboxMeasurement

RECORD = {
    "what": "as asked", "id": "a", "category": "local_add", "inside": 20.0, "outside": None, "copy_inside": 9.0,
    "ceiling_inside": None, "ceiling_outside": None, "compliance": 4.0, "consistency": 3.0, "quality": 2.0,
    "overall": 3.0,
}  # fmt: skip


def test_options_of_a_study_lack_controls_unless_it_asks_for_them():
    (measurement,) = SandboxMeasurement.from_study({"items": 4, "level": "easy"})
    options = measurement.options_for(Path("model"), Path("out"))
    assert (options.items, options.level, options.controls) == (4, "easy", False)
    assert (options.model, options.out) == ("model", Path("out"))
    (measurement,) = SandboxMeasurement.from_study({"controls": True})
    assert measurement.settings.controls


def test_settings_that_cannot_be_drawn_are_refused_before_training():
    (measurement,) = SandboxMeasurement.from_study({"size": 8})
    with pytest.raises(InputError):
        measurement.check()


def test_scores_are_those_of_edits_as_asked_without_those_that_an_item_does_not_have(tmp_path):
    controls = RECORD | {"what": "other words", "id": "b"}
    (tmp_path / SCORES).write_text("".join(json.dumps(record) + "\n" for record in (RECORD, controls)))
    (measurement,) = SandboxMeasurement.from_study(None)
    values = measurement.collect(tmp_path)
    assert values.items["sandbox overall"] == {"sandbox/a": 3.0}
    assert "sandbox outside" not in values.items
    assert values.categories == {"sandbox/a": "local_add"}
