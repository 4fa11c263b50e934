"""Options of a command: a frozen dataclass that is built by the command line, a study's file or Python code.

`Options` is a `Spec`, so it has a dict round trip, typed values and errors that list the choices. The `Args` section of
its docstring is the help text, from which `kiwi.cli.parse` builds the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from kiwi.errors import InputError
from kiwi.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Options(Spec):
    """Base of all commands' options. Subclasses validate their values in `__post_init__`."""

    def require_at_least(self, minimum: int, *names: str) -> None:
        """Refuse options below a minimum; None is accepted.

        Raises:
            InputError: naming the first such option.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None and value < minimum:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} must be at least {minimum}", code="out-of-range", got=value)


def positional(default: Any = dataclasses.MISSING, *, metavar: str | None = None) -> Any:
    """A positional argument of the command line.

    Args:
        default: the option is required if there is none.
        metavar: name in the help; by default the field's name in capitals.
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
) -> Any:
    """An option with settings beyond its type and default.

    Args:
        default: the option is required if there is none.
        metavar: name of its value in the help.
        repeat: for tuples: the option is repeated for every value (`--reference A --reference B`).
        comma_separated: for tuples of strings: the values are separated by commas (`--categories a,b`).
        empty: for tuples: the option may be given without a value, which differs from not giving it.
        flag: its name on the command line, if that is not the field's name with dashes.
    """
    metadata = {
        "metavar": metavar,
        "repeat": repeat,
        "comma_separated": comma_separated,
        "empty": empty,
        "flag": flag,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """Base of the options of commands that run a model.

    Args:
        device: cpu, cuda, cuda:1 ... (default: cuda if there is one)
    """

    device: str | None = None


def parse_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Parse options of the form PATH=VALUE into changes for `kiwi.spec.override`; values are YAML.

    Raises:
        InputError: a text without `=`, or a value that is not YAML.
    """
    parsed = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise InputError(
                "--set takes PATH=VALUE", code="malformed-assignment", got=text, expected="such as source=NoSource"
            )
        try:
            parsed[path] = yaml.safe_load(value)
        except yaml.YAMLError as problem:
            raise InputError(f"the value of {path} is not valid YAML", code="invalid-yaml", got=value) from problem
    return parsed
