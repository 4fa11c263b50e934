"""Errors of Lightning and jsonargparse about options, as one paragraph; bugs keep their traceback."""

import traceback
from collections.abc import Iterable
from typing import NoReturn

from jsonargparse import ArgumentError
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.distributed import DistError

from kiwi.errors import InputError, KiwiError, TrainingError, exception_chain, first_line
from kiwi.training.cli_arguments import explain_parse_error
from kiwi.training.user_modules import explain_import_failure


def raise_plain_error(error: Exception, options: Iterable[str] = ()) -> NoReturn:
    """Raise the KiwiError of a constructor, which jsonargparse wraps, or a short form of jsonargparse's own error."""
    if cause := next((cause for cause in exception_chain(error) if isinstance(cause, KiwiError)), None):
        raise cause from None
    if failure := explain_import_failure(error):
        raise failure from None
    if "Connection closed by peer" in str(error) or isinstance(error, DistError):
        problem, fix = "another process of this run has ended", "see its message, then resume with --ckpt_path last"
        raise TrainingError(problem, code="lost-process", got=first_line(error), fix=fix) from None
    rejection = next((cause for cause in exception_chain(error) if _is_raised_by_lightning(cause)), None)
    if rejection is not None and not isinstance(error, ArgumentError):
        got = " ".join(str(rejection).split())
        if isinstance(rejection, ImportError):
            problem, fix = "a package that an option of the trainer needs is missing", "install it, or omit the option"
            raise InputError(problem, code="missing-package", got=got, fix=fix) from None
        problem, fix = "Lightning rejects an option of the trainer", "correct the options of trainer"
        raise InputError(problem, code="invalid-trainer", got=got, fix=fix) from None
    if not isinstance(error, (ArgumentError, MisconfigurationException)):
        own = next((cause for cause in exception_chain(error) if not _is_raised_by(cause, "jsonargparse")), None)
        if own is not None:
            # A bug, also in a user's class, keeps its traceback; jsonargparse buries it under a dump of all options.
            raise own from None
    raise explain_parse_error(str(error), options) from None


def _is_raised_by_lightning(error: BaseException) -> bool:
    """Whether a statement of Lightning raised an error, or a logger, strategy or plugin cannot import its package."""
    return isinstance(error, ImportError) or _is_raised_by(error, "lightning")


def _is_raised_by(error: BaseException, package: str) -> bool:
    """Whether a statement of a package raised an error, or PyTorch did, called by the package."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, AttributeError):  # PyTorch raises those of modules
        modules = [name for name in modules if not name.startswith("torch.nn.modules.module")]
    return bool(modules) and modules[-1].partition(".")[0] == package
