"""Errors that a user can cause: one paragraph with the problem, what was given, what was expected and how to fix it.

This module imports nothing else of the package. The command line prints every KiwiError as one paragraph on stderr
and exits with code 2; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KiwiError(Exception):
    """A problem that the user can fix.

    Args:
        problem: one sentence on what is wrong, naming the file, option or item.
        code: stable kebab-case name of the kind of problem, such as "unknown-option", for programs and tests.
        got: the value that was given, if the sentence does not name it already.
        expected: the values that would have been accepted.
        fix: what to do now.
    """

    exit_code = 2

    def __init__(
        self, problem: str, *, code: str, got: object = None, expected: object = None, fix: str | None = None
    ) -> None:
        parts = [problem.rstrip(".") + "."]
        if got is not None:
            parts.append(f"Got: {str(got).rstrip('.')}.")
        if expected is not None:
            parts.append(f"Expected: {expected}.")
        if fix is not None:
            parts.append(f"Fix: {fix.rstrip('.')}.")
        super().__init__(" ".join(parts))
        self.problem, self.code, self.got, self.expected, self.fix = problem, code, got, expected, fix


def first_line(problem: BaseException) -> str:
    """The first line of an exception's message; empty if it has none."""
    return next(iter(str(problem).strip().splitlines()), "")


def closest(name: str, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The choice that a misspelt name probably means, None if it resembles none."""
    return next(iter(difflib.get_close_matches(name, list(choices), n=1, cutoff=cutoff)), None)


def one_of(choices: Iterable[str], name: object) -> str:
    """The choices for an unknown name, with the closest of them as a suggestion, for `expected` of an error."""
    choices = list(choices)
    suggestion = closest(str(name), choices)
    return f"one of {', '.join(choices)}" + (f" (did you mean {suggestion}?)" if suggestion else "")


class InputError(KiwiError, ValueError):
    """An argument or option that cannot be used."""


class MediaError(KiwiError):
    """A video or image that cannot be read or written."""


class ManifestError(KiwiError):
    """A malformed manifest; the message names the file and the line."""


class SpecError(KiwiError, ValueError):
    """A spec with an unknown name, an unknown field or a value out of range."""


class CheckpointError(KiwiError):
    """Weights or a model folder that cannot be read or do not match the model."""


class TrainingError(KiwiError):
    """Training that cannot continue, for example because the loss is not finite."""
