"""The commands: one small file each, with `main(argv)` where `argv[0]` is the command's own name.

Here lives what they share: an argument parser that speaks like the rest of kiwi.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

import yaml

from kiwi.errors import InputError


def parser(command: str, description: str, **kwargs: Any) -> argparse.ArgumentParser:
    """An argument parser for `python -m kiwi COMMAND`.

    Its errors are an InputError (one paragraph, exit code 2), its help shows defaults, options cannot be
    abbreviated. Values that need a better message than argparse's are converted after parsing: argparse
    swallows every ValueError that a `type=` function raises.

    Args:
        command: the command's name, as in the command table.
        description: what it does; line breaks stay as they are.
        kwargs: further arguments of argparse.ArgumentParser, such as `epilog`.
    """
    return _Parser(prog=f"python -m kiwi {command}", description=description, **kwargs)


def changes(texts: Sequence[str]) -> dict[str, Any]:
    """Options of the form PATH=VALUE as changes for `kiwi.spec.override`; values are read as YAML.

    Raises:
        InputError: a text without `=`, or a value that is not YAML.
    """
    found = {}
    for text in texts:
        path, given, value = text.partition("=")
        if not given or not path:
            raise InputError("--set takes PATH=VALUE", got=text, wanted="such as source=NoSource")
        try:
            found[path] = yaml.safe_load(value)
        except yaml.YAMLError as problem:
            raise InputError(f"the value of {path} cannot be read", got=value) from problem
    return found


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults where they tell something: not for switches, nor for options without one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or not action.help:
            return action.help
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """Also the class of subparsers, so that all of it holds for them too."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"formatter_class": _Help, "allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}", fix=f"`{self.prog} --help` shows every option")
