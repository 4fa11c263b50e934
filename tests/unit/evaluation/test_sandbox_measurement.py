"""The sandbox as a measurement of studies: reading its options from a file and its scores from a folder."""

import json
from pathlib import Path

import pytest

from kiwi.errors import InputError
from kiwi.evaluation.sandbox_measure import SCORES_FILE, SandboxMeasurement

RECORD = {
    "what": "as asked", "id": "a", "category": "local_add", "inside": 20.0, "outside": None, "copy_inside": 9.0,
    "ceiling_inside": None, "ceiling_outside": None, "compliance": 4.0, "consistency": 3.0, "quality": 2.0,
    "overall": 3.0,
}  # fmt: skip


def test_controls_are_off_in_a_study_unless_it_turns_them_on():
    (measurement,) = SandboxMeasurement.from_study({"items": 4, "level": "easy"})
    options = measurement.make_options(Path("model"), Path("out"))
    assert (options.items, options.level, options.controls) == (4, "easy", False)
    assert (options.model, options.out) == ("model", Path("out"))
    (measurement,) = SandboxMeasurement.from_study({"controls": True})
    assert measurement.settings.controls


def test_settings_that_cannot_be_rendered_are_rejected_before_training():
    (measurement,) = SandboxMeasurement.from_study({"size": 8})
    with pytest.raises(InputError):
        measurement.check()


def test_collected_scores_leave_out_controls_and_missing_values(tmp_path):
    controls = RECORD | {"what": "other words", "id": "b"}
    (tmp_path / SCORES_FILE).write_text("".join(json.dumps(record) + "\n" for record in (RECORD, controls)))
    (measurement,) = SandboxMeasurement.from_study(None)
    values = measurement.collect(tmp_path)
    assert values.items["sandbox overall"] == {"sandbox/a": 3.0}
    assert "sandbox outside" not in values.items
    assert values.categories == {"sandbox/a": "local_add"}
