"""The commands, one file each with a function `main(argv)`, where `argv[0]` is the name of the command.

A command is an options dataclass (`kiwi.options.Options`) and one function, which Python users can call too. This
module parses a command line to the dataclass. It uses argparse, because typed options of jsonargparse can neither be
repeated (`--reference A --reference B`) nor be switches without a value (`--dry-run`).
"""

import argparse
import dataclasses
import re
import types
import typing
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

import docstring_parser

from kiwi import console
from kiwi.errors import InputError, format_choices, suggest_choice
from kiwi.options import Options
from kiwi.spec import from_dict

OptionsT = TypeVar("OptionsT", bound=Options)


class Action(NamedTuple):
    """One of the actions of a command, such as `compare` in `kiwi bench compare`."""

    options: type[Options]
    run: Callable[[Any], int]
    """Function of the options that returns the exit code."""
    fixed: Mapping[str, Any] = types.MappingProxyType({})
    """Option values that the action's name implies, such as the suite of `kiwi bench openve`."""
    help: str = ""
    """One line of help; by default the first line of the options' docstring."""


def parse(
    options: type[OptionsT], command: str, argv: Sequence[str], fixed: Mapping[str, Any] = types.MappingProxyType({})
) -> OptionsT:
    """Parse the words after a command, such as "bench compare"; `fixed` sets fields without an option.

    Raises:
        InputError: unknown or missing options, or invalid values.
    """
    parser = build_parser(options, command, fixed)
    values = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    return typing.cast(OptionsT, from_dict(options, {**values, **fixed}))


def dispatch(actions: Mapping[str, Action], command: str, description: str, argv: Sequence[str]) -> int:
    """Run the action that the first words of `argv` name, and return its exit code.

    Raises:
        InputError: there is no such action.
    """
    name = next((name for name in actions if list(argv[: len(name.split())]) == name.split()), None)
    if name is not None:
        action = actions[name]
        command = f"{command} {name}"
        return action.run(parse(action.options, command, argv[len(name.split()) :], action.fixed))
    if argv and argv[-1] not in ("-h", "--help"):
        expected = format_choices(actions, argv[0])
        raise InputError(f"`kiwi {command}` has no action {argv[0]!r}", code="unknown-command", expected=expected)
    width = max(map(len, actions))
    lines = [f"usage: python -m kiwi {command} ACTION ...", "", description, "", "actions:"]
    lines += [f"  {name:<{width}}  {action.help or _get_summary(action.options)}" for name, action in actions.items()]
    console.print("\n".join([*lines, "", f"`python -m kiwi {command} ACTION --help` shows an action's options."]))
    return 0 if argv else 2


def build_parser(options: type[Options], command: str, excluded: Container[str] = ()) -> argparse.ArgumentParser:
    """Build the argparse parser of a command's options; the `excluded` fields get no option."""
    documented = docstring_parser.parse(options.__doc__ or "")
    help_texts = {
        name: " ".join((entry.description or "").split())
        for base in reversed(options.__mro__)  # shared fields are documented in the base class
        for entry in docstring_parser.parse(base.__doc__ or "").params
        for name in entry.arg_name.split(", ")
    }
    description = "\n\n".join(filter(None, (documented.short_description, documented.long_description)))
    parser = _Parser(prog=f"python -m kiwi {command}", description=description)
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        if field.name in excluded:
            continue
        help_text = help_texts.get(field.name)
        assert help_text, f"{options.__name__}.{field.name} is not documented in the docstring"
        _add_option(parser, field, hints[field.name], help_text)
    return parser


def _add_option(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any, help_text: str) -> None:
    flag = field.metadata.get("flag") or "--" + field.name.replace("_", "-")
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    default = None if required or field.default in (None, (), dataclasses.MISSING) else field.default
    has_visible_default = default is not None and not isinstance(default, bool)
    text = f"{help_text} (default: {_format_default(default)})" if has_visible_default else help_text
    text = text.replace("%", "%%")
    if hint is bool:
        # `gallery: bool = True`, described as "write gallery.html", becomes "--no-gallery: do not write gallery.html".
        name = f"--no-{field.name.replace('_', '-')}" if default else flag
        action = "store_false" if default else "store_true"
        text = f"do not {text}" if default else text
        parser.add_argument(name, dest=field.name, action=action, default=None, help=text)
        return
    value_type, is_sequence = _unwrap_type(hint)
    arguments: dict[str, Any] = {"help": text, "type": value_type if value_type in (int, float) else str}
    if field.metadata.get("metavar"):
        arguments["metavar"] = field.metadata["metavar"]
    if typing.get_origin(value_type) is typing.Literal:
        arguments["choices"] = typing.get_args(value_type)
        arguments["type"] = type(arguments["choices"][0])
    if is_sequence and field.metadata.get("repeat"):
        arguments["action"] = "append"
    elif is_sequence and field.metadata.get("comma_separated"):
        arguments["type"] = _split_at_commas
    elif is_sequence:
        arguments["nargs"] = "*" if field.metadata.get("empty") else "+"
    if field.metadata.get("positional"):
        arguments.setdefault("metavar", field.name.upper())
        arguments.setdefault("nargs", None if required else "?")
        parser.add_argument(field.name, **arguments)
    else:
        parser.add_argument(flag, dest=field.name, required=required, **arguments)
    if former := field.metadata.get("formerly"):  # `from_dict` warns of it
        parser.add_argument("--" + former.replace("_", "-"), dest=former, **{**arguments, "help": argparse.SUPPRESS})


def _unwrap_type(hint: Any) -> tuple[Any, bool]:
    """The type of one value, and whether there may be several, for hints such as `int | None` and `tuple[str, ...]`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) in (tuple, list):
        return typing.get_args(hint)[0], True
    return hint, False


def _split_at_commas(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def _format_default(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, (tuple, list)) else str(default)


def _get_summary(options: type[Options]) -> str:
    return (docstring_parser.parse(options.__doc__ or "").short_description or "").rstrip(".")


class _Parser(argparse.ArgumentParser):
    """Parser that raises errors as InputError (one paragraph, exit code 2) and accepts no abbreviated options."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        if unknown := re.match(r"unrecognized arguments: (--[\w-]+)", message):
            message = f"there is no option {unknown[1]}{suggest_choice(self._option_string_actions, unknown[1])}"
        raise InputError(f"{self.prog}: {message}", code="invalid-option", fix=f"see `{self.prog} --help`")
