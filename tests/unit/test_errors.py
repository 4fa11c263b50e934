"""kiwi.errors: the message is one paragraph that says what is wrong, what was expected and how to fix it."""

import pytest

from kiwi import errors
from kiwi.errors import InputError, KiwiError, SpecError, exception_chain, format_choices

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, KiwiError)]


def test_the_message_is_one_paragraph_of_problem_got_expected_and_fix():
    error = KiwiError(
        "clip.mp4 is too short", code="too-short", got="3 frames", expected="5 or more", fix="cut a longer clip"
    )
    assert str(error) == "clip.mp4 is too short. Got: 3 frames. Expected: 5 or more. Fix: cut a longer clip."


def test_absent_parts_are_not_mentioned():
    assert str(KiwiError("the disk is full", code="disk-full")) == "the disk is full."


def test_a_full_stop_is_not_doubled():
    assert str(KiwiError("it broke.", code="broken", fix="mend it.")) == "it broke. Fix: mend it."


def test_falsy_values_are_still_shown():
    assert str(KiwiError("no frames", code="no-frames", got=0, expected=False)) == "no frames. Got: 0. Expected: False."


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_ends_with_exit_code_2_and_keeps_its_parts(kind):
    error = kind("a", code="b", got=1, expected=2, fix="c")
    assert (error.exit_code, error.problem, error.code) == (2, "a", "b")
    assert (error.got, error.expected, error.fix) == (1, 2, "c")


@pytest.mark.parametrize("kind", [InputError, SpecError])
def test_errors_about_values_are_also_value_errors(kind):
    with pytest.raises(ValueError, match=r"^a\.$"):
        raise kind("a", code="b")


def test_a_misspelt_name_is_answered_with_the_choices_and_a_suggestion():
    assert format_choices(["fit", "edit"], "edti") == "one of fit, edit (did you mean edit?)"
    assert format_choices(["fit", "edit"], "xyz") == "one of fit, edit"
    assert format_choices(["fit"], "fti") == "fit"
    assert "no valid names" in format_choices([], "fit")


def test_every_error_needs_a_code():
    with pytest.raises(TypeError, match="code"):
        KiwiError("the disk is full")


def test_causes_in_a_circle_are_listed_once():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert list(exception_chain(first)) == [first, second]
