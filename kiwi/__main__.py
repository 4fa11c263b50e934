"""The command table: `python -m kiwi COMMAND ...` imports one module of kiwi.cli and hands it the arguments.

Nothing heavy is imported before the command is known, so that help is instant. What ends a command early
becomes an exit code here: a KiwiError its paragraph and 2, so a full disk, Ctrl-C 130; any other exception is a bug
and keeps its traceback.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from kiwi import __doc__ as purpose
from kiwi import __version__, console
from kiwi.errors import InputError, KiwiError, one_of


class Command(NamedTuple):
    """A row of the table: the module with `main(argv)`, one line on what it does, one example."""

    module: str
    summary: str
    example: str


COMMANDS = {
    "fit": Command(
        "kiwi.cli.fit",
        "train an editor, or a part of it",
        "--config experiments/first_light/editor.yaml --trainer.max_steps 200",
    ),
    "validate": Command(
        "kiwi.cli.fit",
        "measure a checkpoint on its validation data",
        "--config experiments/first_light/editor.yaml --ckpt_path CHECKPOINT",
    ),
    "cache": Command(
        "kiwi.cli.cache",
        "encode an experiment's clips once, for all training on them",
        "--config experiments/first_light/editor.yaml --out runs/first_light/cache",
    ),
    "edit": Command(
        "kiwi.cli.edit",
        "edit a video by an instruction and a reference image",
        'in.mp4 --instruction "Make it snow" --model MODEL --out out.mp4',
    ),
    "convert": Command(
        "kiwi.cli.convert",
        "convert between model folders and the published formats",
        "kiwi-diffusers DOWNLOADED_FOLDER MODEL",
    ),
    "plan": Command(
        "kiwi.cli.plan",
        "count parameters and operations of an editor and its variants",
        "5b --variants experiments/ablations/variants.yaml",
    ),
    "parity": Command("kiwi.cli.parity", "compare with the published code's numbers", "tests/golden"),
    "sandbox": Command("kiwi.cli.sandbox", "the rendered world of edits and its oracle", "preview world.png"),
    "bench": Command(
        "kiwi.cli.bench",
        "score an editor, or edited videos, on OpenVE-Bench, RefVIE-Bench or the sandbox",
        "openve --data sandbox",
    ),
    "ablate": Command(
        "kiwi.cli.ablate",
        "train and measure variants of an editor under several seeds, and tell what each part is worth",
        "experiments/ablations/components.yaml --jobs 2",
    ),
    "curves": Command("kiwi.cli.curves", "draw the learning curves of runs", "runs/sandbox/base --out base.png"),
    "doctor": Command("kiwi.cli.doctor", "tell what is installed, what is missing and how to get it", "--json"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's) and return its exit code."""
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except KiwiError as problem:
        console.error(str(problem))
        return problem.exit_code
    except KeyboardInterrupt:
        console.error("interrupted")
        return 130
    except BrokenPipeError:
        # The reader has gone (`... | head`). What is still buffered must not be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fix = "make room there; most long commands go on from where they stopped if they are given again"
        full = InputError("there is no room left on the disk", got=problem.filename, fix=fix)
        console.error(str(full))
        return full.exit_code


def _run(argv: list[str]) -> int:
    console.setup_logging()
    if not argv or argv[0] in ("-h", "--help", "help"):
        console.print(_help())
        return 0 if argv else 2
    if argv[0] == "--version":
        console.print(f"kiwi {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise InputError(
            f"there is no command {argv[0]!r}",
            wanted=one_of(COMMANDS, argv[0]),
            fix="`python -m kiwi --help` says what each does",
        )
    module = importlib.import_module(COMMANDS[argv[0]].module)
    return module.main(argv) or 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: python -m kiwi COMMAND ...", "", str(purpose), "", "commands:"]
    lines += [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    lines += ["", "examples:"]
    lines += [f"  python -m kiwi {name} {command.example}" for name, command in COMMANDS.items()]
    lines += ["", "`python -m kiwi COMMAND --help` shows a command's options, `python -m kiwi --version` the version."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
