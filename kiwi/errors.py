"""Errors that a user can fix: one paragraph that says what is wrong, what was expected and how to fix it.

This module imports nothing else from kiwi. The command line prints every KiwiError as one paragraph on stderr
and exits with code 2; any other exception is a bug and keeps its traceback.
"""

import difflib
import errno
from collections.abc import Iterable, Iterator


class KiwiError(Exception):
    """Base class of the errors that a user can fix.

    Args:
        problem: one sentence that says what is wrong and names the file, option or item.
        code: stable kebab-case name for the kind of error, such as "unknown-option", for programs and tests.
        got: the rejected value, unless `problem` already contains it; or the error that was caught.
        expected: the accepted values.
        fix: what the user can do.
    """

    exit_code = 2
    problem: str
    got: object

    def __init__(
        self, problem: str, *, code: str, got: object = None, expected: object = None, fix: str | None = None
    ) -> None:
        if isinstance(got, KiwiError):  # its text may have a fix and an expected value of its own
            got = got.problem if got.got is None else f"{got.problem.rstrip('.')}: {got.got}"
        parts = [problem.rstrip(".") + "."]
        if got is not None:
            parts.append(f"Got: {str(got).rstrip('.')}.")
        if expected is not None:
            parts.append(f"Expected: {expected}.")
        if fix is not None:
            parts.append(f"Fix: {fix.rstrip('.')}.")
        super().__init__(" ".join(parts))
        self.problem, self.code, self.got, self.expected, self.fix = problem, code, got, expected, fix


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or an empty string if it has none."""
    return next(iter(str(error).strip().splitlines()), "")


def closest_match(name: str, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the choice most similar to a misspelt name, or None if none is similar."""
    return next(iter(difflib.get_close_matches(name, list(choices), n=1, cutoff=cutoff)), None)


def format_choices(choices: Iterable[str], name: object) -> str:
    """List the valid choices for an `expected` text, and suggest the one closest to the unknown `name`."""
    choices = list(choices)
    if len(choices) > 1:
        return f"one of {', '.join(choices)}{suggest_choice(choices, name)}"
    return choices[0] if choices else "none, because there are no valid names"


def suggest_choice(choices: Iterable[str], name: object) -> str:
    """Return " (did you mean CHOICE?)" for the choice closest to the unknown `name`, or an empty string."""
    closest = closest_match(str(name), choices)
    return f" (did you mean {closest}?)" if closest else ""


def exception_chain(error: BaseException | None) -> Iterator[BaseException]:
    """Iterate over an exception, its cause, the cause of that, and so on; each is yielded once, even in a circle."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


class InputError(KiwiError, ValueError):
    """An invalid argument or option."""


def explain_os_error(error: OSError) -> KiwiError | None:
    """The error that a user sees instead of one of the file system; None for one that is a bug.

    Full disks are reported as such. Paths that cannot be used (names that are too long, folders that may not be
    searched or written to, files in place of folders) are named with the system's reason.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "free some space and rerun the command; most long commands resume"
        return InputError("no space left on the disk", code="disk-full", got=error.filename, fix=fix)
    if error.filename is None or error.errno not in _PATH_ERRORS:
        return None
    problem, fix = f"the path {error.filename} cannot be used", "check the path and its permissions"
    return InputError(problem, code="unusable-path", got=error.strerror, fix=fix)


_PATH_ERRORS = (
    errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO,
    errno.ESTALE, errno.EIO,
)  # fmt: skip


class MediaError(KiwiError):
    """A video or image that cannot be read or written."""


class ManifestError(KiwiError):
    """An invalid manifest; the message names the file and the line."""


class SpecError(KiwiError, ValueError):
    """A spec with an unknown name, an unknown field or a value out of range."""


def repeated_option(former: str, current: str) -> SpecError:
    """The error for a value that is given under both names of a renamed field or option."""
    problem = f"{former} and {current} are the old and the new name of one option, and both are given"
    return SpecError(problem, code="duplicate-field", fix=f"remove {former}")


class CheckpointError(KiwiError):
    """Weights or a model folder that cannot be read or do not match the model."""


class TrainingError(KiwiError):
    """Training that cannot continue, for example because the loss is not finite."""
