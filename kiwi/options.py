"""Options of a command: a frozen dataclass that the command line, a study's file and Python all build.

`Options` is a `Spec`, so that it has a dict round trip, typed values and refusals that name the choices. The
`Args` section of its docstring is the help text; `kiwi.cli.parse` makes the command line from it.
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
    """Base of all commands' options. `__post_init__` of a subclass refuses values that cannot be used."""

    def require_at_least(self, minimum: int, *names: str) -> None:
        """Refuse options below a minimum; those that were not given (None) pass.

        Raises:
            InputError: naming the first such option as the command line does.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None and value < minimum:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} must be at least {minimum}", code="out-of-range", got=value)


def positional(default: Any = dataclasses.MISSING, *, metavar: str | None = None) -> Any:
    """An option that the command line takes by its place.

    Args:
        default: without one it is required.
        metavar: name in the help; the field's in capitals unless given.
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
    """An option with more to say about itself than its type and its default.

    Args:
        default: without one it is required.
        metavar: name of its value in the help.
        repeat: of a tuple: the option is given once a value (`--reference A --reference B`), not with all of them.
        comma_separated: of a tuple of strings: its values are one word, separated by commas (`--categories a,b`).
        empty: of a tuple: the option may be given without a value, which is not the same as not giving it.
        flag: its name on the command line, where that is not the field's with dashes.
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
    """Base of the options of a command that runs a model.

    Args:
        device: cpu, cuda, cuda:1 ... (default: cuda if there is one)
    """

    device: str | None = None


def parse_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Options of the form PATH=VALUE as changes for `kiwi.spec.override`; values are read as YAML.

    Raises:
        InputError: a text without `=`, or a value that is not YAML.
    """
    parsed = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise InputError(
                "--set takes PATH=VALUE", code="malformed-assignment", got=text, wanted="such as source=NoSource"
            )
        try:
            parsed[path] = yaml.safe_load(value)
        except yaml.YAMLError as problem:
            raise InputError(f"the value of {path} is not valid YAML", code="invalid-yaml", got=value) from problem
    return parsed
