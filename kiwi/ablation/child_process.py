"""`python -m kiwi.ablation.child_process FOLDER INDEX`: run one step of a run, and exit when the parent process dies.

So killing a study also ends its training processes, which would otherwise write into a later study's folders.
"""

import importlib
import os
import sys
from pathlib import Path

from kiwi.processes import end_with_parent


def main(folder: str, step_index: str) -> int:
    """Run a step and return its exit code."""
    from kiwi import console
    from kiwi.errors import KiwiError, explain_os_error

    console.setup_logging()
    try:
        return _run_step(Path(folder), int(step_index))
    except KiwiError as error:
        console.error(str(error))
        return error.exit_code
    except OSError as error:
        if (explained := explain_os_error(error)) is None:
            raise
        console.error(str(explained))
        return explained.exit_code


def _run_step(folder: Path, step_index: int) -> int:
    from kiwi.ablation.steps import read_steps
    from kiwi.errors import InputError
    from kiwi.spec import from_dict

    step = read_steps(folder)[step_index]
    for module in step.modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            message = f"the module {module}, which defines a spec of this arm, cannot be imported"
            raise InputError(message, code="missing-module", got=error, fix="add its folder to PYTHONPATH") from error
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
    end_with_parent(parent_id=int(os.environ.get("KIWI_PARENT_PROCESS", os.getppid())))
    sys.exit(main(*sys.argv[1:]))
