"""Options of measurements are read from files with their types, and cannot set what a study sets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from kiwi.errors import InputError, SpecError
from kiwi.evaluation.measurement import parse_options
from kiwi.options import Options


@dataclass(frozen=True, kw_only=True)
class WeighOptions(Options):
    """Weigh a model.

    Args:
        model: folder of the model.
        scale: kind of scale.
        max_pixels: size of the label.
        gallery: do not write a gallery.
    """

    model: Path
    scale: Literal["kitchen", "letter"] = "kitchen"
    max_pixels: int | None = None
    gallery: bool = True


def weigh(settings, **more):
    return parse_options(WeighOptions, settings, "weigh", fixed={"model": "m"}, **more)


@pytest.mark.parametrize("settings", [{"max-pixels": 4, "no-gallery": True}, {"max_pixels": 4, "gallery": False}])
def test_options_are_spelled_as_on_the_command_line_or_as_in_python(settings):
    assert weigh(settings) == WeighOptions(model=Path("m"), max_pixels=4, gallery=False)


def test_missing_settings_have_their_defaults():
    assert weigh(None) == weigh({}) == WeighOptions(model=Path("m"))


@pytest.mark.parametrize("name", ["model", "scale"])
def test_options_that_are_set_for_each_run_cannot_be_set_in_a_file(name):
    with pytest.raises(InputError, match=f"cannot set {name}") as caught:
        weigh({name: "letter"}, forbidden=["scale"])
    assert caught.value.code == "reserved-option"


@pytest.mark.parametrize(
    "name", ["model=other", "out=/x", "--model", "model ", "no-model", "no_model", "scale\n--model"]
)
@pytest.mark.parametrize("value", [True, False, "other"])
def test_no_spelling_of_a_name_smuggles_another_option_in(name, value):
    with pytest.raises(InputError, check=lambda error: error.code in ("unknown-field", "reserved-option")):
        weigh({name: value})


def test_the_message_about_an_unknown_option_lists_only_options_that_may_be_set():
    with pytest.raises(InputError, check=lambda error: error.code == "unknown-field") as caught:
        weigh({"max_pixel": 4}, forbidden=["scale"])
    expected = "Expected: one of gallery, max_pixels (did you mean max_pixels?)."
    assert str(caught.value) == f"weigh has no option 'max_pixel'. {expected}"


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"scales": "letter"}, "did you mean scale?"),
        ({"scale": "bathroom"}, "bathroom"),
        ({"max_pixels": "many"}, "many"),
        ({"model=other": 1}, "model=other"),
        ({"scale": "letter --model other"}, "letter --model other"),
        (["scale"], "scale"),
        ({1: 2}, "weigh has no option 1."),
    ],
)
def test_unknown_names_and_values_are_rejected(settings, value):
    with pytest.raises((InputError, SpecError)) as caught:
        weigh(settings)
    assert value in str(caught.value)
