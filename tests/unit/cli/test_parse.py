"""An options dataclass defines a command line: names, types, defaults, help and errors."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import pytest

from kiwi.cli import Action, build_parser, dispatch, parse
from kiwi.errors import InputError, SpecError
from kiwi.options import Options, option, positional


@dataclass(frozen=True, kw_only=True)
class PaintOptions(Options):
    """Paint a picture.

    Media:
      oil   dries slowly

    Args:
        out: file to write.
        colour: colour of the paint.
        reference: picture to copy; may be repeated.
        layers: thicknesses in micrometres.
        coats: number of coats; 100% dry before the next.
        frame: add the frame.
        dry_run: paint nothing.
    """

    out: Path = positional()
    colour: Literal["red", "blue"] = "red"
    reference: tuple[Path, ...] = option((), repeat=True, metavar="IMAGE")
    layers: tuple[int, ...] = (1, 2)
    coats: int | None = None
    frame: bool = True
    dry_run: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.coats is not None and self.coats < 1:
            raise InputError("--coats must be at least 1", code="too-few-coats", got=self.coats)


def test_every_kind_of_option_is_typed():
    words = "x.png --colour blue --reference a --reference b --layers 3 4 --coats 2 --no-frame --dry-run"
    options = parse(PaintOptions, "paint", words.split(" "))
    assert (options.out, options.colour, options.coats) == (Path("x.png"), "blue", 2)
    assert (options.reference, options.layers) == ((Path("a"), Path("b")), (3, 4))
    assert (options.frame, options.dry_run) == (False, True)


def test_options_that_are_not_given_have_their_defaults():
    assert parse(PaintOptions, "paint", ["x.png"]) == PaintOptions(out=Path("x.png"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: OUT"),
        (["x", "--coats", "two"], "argument --coats: invalid int value: 'two'"),
        (["x", "--colour", "green"], "argument --colour: invalid choice: 'green'"),
        (["x", "--cots", "1"], "there is no option --cots (did you mean --coats?)"),
        (["x", "--col", "red"], "there is no option --col (did you mean --colour?)"),
        (["x", "y"], "unrecognized arguments: y"),
    ],
)
def test_a_wrong_command_line_is_an_error_that_points_to_the_help_without_printing_it(words, message, capsys):
    with pytest.raises(InputError, check=lambda error: error.code == "invalid-option") as caught:
        parse(PaintOptions, "paint", words)
    assert str(caught.value).startswith(f"python -m kiwi paint: {message}")
    assert str(caught.value).endswith("Fix: see `python -m kiwi paint --help`.")
    assert capsys.readouterr() == ("", "")


def test_the_dataclass_validates_values_from_the_command_line_and_from_python():
    from_words = partial(parse, PaintOptions, "paint", ["x", "--coats", "0"])
    for build in (from_words, partial(PaintOptions, out=Path("x"), coats=0)):
        with pytest.raises(InputError) as caught:
            build()
        assert caught.value.code == "too-few-coats"


def test_the_help_shows_the_docstring_and_the_defaults():
    text = " ".join(build_parser(PaintOptions, "paint").format_help().split())
    assert "Paint a picture." in text
    assert "\n\nMedia:\n  oil   dries slowly\n" in build_parser(PaintOptions, "paint").format_help()
    assert text.count("(default: ") == 2
    assert "colour of the paint. (default: red)" in text
    assert "thicknesses in micrometres. (default: 1 2)" in text
    assert "100% dry" in text
    assert "--no-frame do not add the frame." in text


def test_an_undocumented_option_is_a_bug():
    @dataclass(frozen=True, kw_only=True)
    class BareOptions(Options):
        """Options without documentation."""

        secret: int = 1

    with pytest.raises(AssertionError, match="secret"):
        build_parser(BareOptions, "bare")


def test_actions_are_dispatched_by_name_and_unknown_actions_are_rejected(capsys):
    calls = []
    actions = {"paint": Action(PaintOptions, lambda options: calls.append(options) or 0)}
    assert dispatch(actions, "studio", "A studio.", ["paint", "x.png"]) == 0
    assert calls == [PaintOptions(out=Path("x.png"))]
    assert dispatch(actions, "studio", "A studio.", ["--help"]) == 0
    assert "Paint a picture" in capsys.readouterr().out
    with pytest.raises(InputError) as caught:
        dispatch(actions, "studio", "A studio.", ["pant"])
    assert caught.value.code == "unknown-command"
    assert "Expected: paint." in str(caught.value)


def test_an_action_may_have_two_words_and_set_fields_itself(capsys):
    calls = []
    actions = {"paint red": Action(PaintOptions, calls.append, {"colour": "red"}, "use red")}
    dispatch(actions, "studio", "A studio.", ["paint", "red", "x.png"])
    assert calls == [PaintOptions(out=Path("x.png"), colour="red")]
    with pytest.raises(InputError, check=lambda error: error.code == "invalid-option"):
        dispatch(actions, "studio", "A studio.", ["paint", "red", "x.png", "--colour", "blue"])
    assert dispatch(actions, "studio", "A studio.", ["paint", "--help"]) == 0
    assert "paint red  use red" in capsys.readouterr().out


def test_an_option_may_be_given_without_a_value():
    @dataclass(frozen=True, kw_only=True)
    class MeasureOptions(Options):
        """Measure.

        Args:
            metrics: names of metrics.
        """

        metrics: tuple[str, ...] | None = option(None, empty=True)

    words = ([], ["--metrics"], ["--metrics", "a", "b"])
    assert [parse(MeasureOptions, "measure", list(w)).metrics for w in words] == [None, (), ("a", "b")]


def test_options_from_a_file_are_typed_and_unknown_names_rejected():
    from kiwi.spec import from_dict

    assert from_dict(PaintOptions, {"out": "x.png", "reference": ["a"]}).reference == (Path("a"),)
    with pytest.raises(SpecError, match="coats"):
        from_dict(PaintOptions, {"out": "x.png", "coat": 2})


def test_options_that_commands_share_are_described_once_in_their_base():
    @dataclass(frozen=True, kw_only=True)
    class FramedOptions(PaintOptions):
        """Paint a framed picture.

        Args:
            wood, finish: material of the frame.
            rooms: rooms to hang it in.
        """

        wood: str = "oak"
        finish: str = "oil"
        rooms: tuple[str, ...] = option((), comma_separated=True)

    text = " ".join(build_parser(FramedOptions, "frame").format_help().split())
    assert "Paint a framed picture." in text
    assert "material of the frame. (default: oak)" in text
    assert "material of the frame. (default: oil)" in text
    assert "colour of the paint. (default: red)" in text
    assert parse(FramedOptions, "frame", ["x.png", "--rooms", "hall, attic"]).rooms == ("hall", "attic")
