"""Errors a user can cause. Each says what came, what was wanted and how to fix it, in one paragraph.

The lowest room of the house: imports nothing of kiwi. The command line turns every KiwiError into
one paragraph on stderr and exit code 2; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KiwiError(Exception):
    """A problem that the user can mend.

    Args:
        problem: one sentence on what is wrong, naming the file, option or item.
        code: stable name of the kind of problem in kebab-case, such as "unknown-option"; for programs and tests.
        got: what came, if that is not in the sentence already.
        wanted: what would have been right.
        fix: what to do now.
    """

    exit_code = 2

    def __init__(
        self, problem: str, *, code: str = "", got: object = None, wanted: object = None, fix: str | None = None
    ) -> None:
        parts = [problem.rstrip(".") + "."]
        if got is not None:
            parts.append(f"Got: {str(got).rstrip('.')}.")
        if wanted is not None:
            parts.append(f"Wanted: {wanted}.")
        if fix is not None:
            parts.append(f"Fix: {fix.rstrip('.')}.")
        super().__init__(" ".join(parts))
        self.problem, self.code, self.got, self.wanted, self.fix = problem, code, got, wanted, fix


def one_of(allowed: Iterable[str], given: object) -> str:
    """What is wanted instead of a name that is not known: all that are, and the one that was probably meant."""
    names = list(allowed)
    close = difflib.get_close_matches(str(given), names, n=1)
    return f"one of {', '.join(names)}" + (f" (did you mean {close[0]}?)" if close else "")


class InputError(KiwiError, ValueError):
    """An argument or option that cannot be used."""


class MediaError(KiwiError):
    """A video or image that cannot be read or written."""


class ManifestError(KiwiError):
    """A manifest that is malformed; the message names file and line."""


class SpecError(KiwiError, ValueError):
    """A spec with an unknown name, an unknown field or a value out of range."""


class CheckpointError(KiwiError):
    """Weights or a model folder that do not fit the model."""


class TrainingError(KiwiError):
    """Training that cannot go on, such as a loss that is not finite."""
