"""`python -m kiwi.ablation.child_process FOLDER N`: run step N of a folder, and die with the process that started it.

A study that is killed leaves no training behind that would write into the folders of the next one (on Linux).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""


def main(folder: str, number: str) -> int:
    """Run a step; the exit code."""
    from kiwi import console
    from kiwi.errors import KiwiError

    console.setup_logging()
    try:
        return _run(Path(folder), int(number))
    except KiwiError as problem:
        console.error(str(problem))
        return problem.exit_code


def _run(folder: Path, number: int) -> int:
    from kiwi.ablation.steps import read_steps
    from kiwi.errors import InputError
    from kiwi.spec import from_dict

    step = read_steps(folder)[number]
    if step.measurement is not None:
        return step.measurement.run(step.options)
    if step.command == "fit":
        from kiwi.training.fit import FitOptions, fit

        fit(from_dict(FitOptions, step.options))
    elif step.command == "cache":
        from kiwi.training.cache import CacheOptions, fill_cache

        fill_cache(from_dict(CacheOptions, step.options))
    else:
        raise InputError(
            f"a step cannot run the command {step.command!r}", code="unknown-command", expected="fit or cache"
        )
    return 0


if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.environ.get("KIWI_PARENT_PROCESS", str(os.getppid())) != str(os.getppid()):
            sys.exit(1)  # the parent died before the signal was set
    sys.exit(main(*sys.argv[1:]))
