"""Options of a command: a frozen dataclass that the command line, a study's YAML file or Python code creates.

`Options` is a `Spec`: it converts to a dictionary and back, checks the types of its values, and its errors list what is
allowed. `kiwi.cli.parse` derives the command line from its fields and the help from the `Args` of its docstring.
"""

import dataclasses
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kiwi.errors import InputError
from kiwi.reading import parse_yaml
from kiwi.spec import LARGEST, Spec, convert, to_plain


@dataclass(frozen=True, kw_only=True)
class Options(Spec):
    """Base class of the options of all commands.

    Values from Python are checked and converted as those of files: text becomes a `Path`, a list a tuple. A single
    value of a tuple may be given alone. Subclasses validate values in `__post_init__`, after calling that of the base.
    """

    def __post_init__(self) -> None:
        """Raises SpecError for a value of the wrong type."""
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, hint = to_plain(getattr(self, field.name)), hints[field.name]
            accepted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            if isinstance(value, (str, int, float)) and any(typing.get_origin(part) is tuple for part in accepted):
                value = (value,)
            object.__setattr__(self, field.name, convert(hint, value, field.name))

    def require_at_least(self, minimum: int, *names: str) -> None:
        """Raise an InputError if a named option is below a minimum or above `kiwi.spec.LARGEST`; None is accepted."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not minimum <= value <= LARGEST:
                bound = f"at most {LARGEST:,}" if value > LARGEST else f"at least {minimum}"
                problem, expected = f"--{name.replace('_', '-')} must be {bound}", f"{minimum} to {LARGEST:,}"
                raise InputError(problem, code="out-of-range", got=value, expected=expected)


def positional(default: Any = dataclasses.MISSING, *, metavar: str | None = None) -> Any:
    """Declare a field that is a positional argument on the command line.

    Args:
        default: default value; without one the argument is required.
        metavar: name of the argument in the help; by default the field's name in capitals.
    """
    return dataclasses.field(default=default, metadata={"positional": True, "metavar": metavar})


def option(
    default: Any = dataclasses.MISSING,
    *,
    metavar: str | None = None,
    repeat: bool = False,
    comma_separated: bool = False,
    empty: bool = False,
    flag: str | None = None,
    formerly: str | None = None,
) -> Any:
    """Declare a field whose command-line option needs more than a type and a default.

    Args:
        default: default value; without one the option is required.
        metavar: name of the option's value in the help.
        repeat: a tuple is given by repeating the option for every value (`--reference A --reference B`).
        comma_separated: a tuple of strings is given as one text with commas (`--categories a,b`).
        empty: the option of a tuple may be given without a value, which sets `()` instead of the default.
        flag: name of the option on the command line; by default the field's name with dashes.
        formerly: name of the field in the previous release, which is accepted with a warning.
    """
    metadata = {"metavar": metavar, "repeat": repeat, "comma_separated": comma_separated, "empty": empty, "flag": flag}
    metadata |= {} if formerly is None else {"formerly": formerly}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """Base class of the options of commands that run a model.

    Args:
        device: cpu, cuda, cuda:1 ... (default: cuda if there is one)
    """

    device: str | None = None


def parse_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Parse texts of the form PATH=VALUE, whose values are YAML, into changes for `kiwi.spec.override`."""
    parsed = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise InputError("--set takes PATH=VALUE, such as source=NoSource", code="invalid-assignment", got=text)
        try:
            parsed[path] = parse_yaml(value)
        except ValueError as error:
            raise InputError(f"the value of {path} is not valid YAML", code="invalid-assignment", got=value) from error
    return parsed
