"""The table of commands: `python -m kiwi COMMAND ...` imports one module of kiwi.cli and passes it the arguments.

No large package is imported before the command is known, so help is instant. Exceptions become exit codes here: 2 for a
KiwiError (whose message is printed), a full disk and a path that cannot be used, 130 for Ctrl-C; any other exception is
a bug and keeps its traceback.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from kiwi import __doc__ as description
from kiwi import __version__, console
from kiwi.errors import InputError, KiwiError, explain_os_error, format_choices


class Command(NamedTuple):
    """A command: the module that contains `main(argv)`, a one-line summary, and example arguments."""

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
        "evaluate a checkpoint on the validation data",
        "--config experiments/first_light/editor.yaml --ckpt_path CHECKPOINT",
    ),
    "cache": Command(
        "kiwi.cli.cache",
        "encode the clips of an experiment once, before training",
        "--config experiments/first_light/editor.yaml --out runs/first_light/cache",
    ),
    "edit": Command(
        "kiwi.cli.edit",
        "edit a video with an instruction and a reference image",
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
    "parity": Command("kiwi.cli.parity", "check numerical parity with the published implementation", "tests/golden"),
    "sandbox": Command(
        "kiwi.cli.sandbox", "render synthetic edits with exact targets, evaluate editors on them", "preview world.png"
    ),
    "bench": Command(
        "kiwi.cli.bench",
        "score an editor, or edited videos, on OpenVE-Bench, RefVIE-Bench or the sandbox",
        "openve --data sandbox",
    ),
    "ablate": Command(
        "kiwi.cli.ablate",
        "train and evaluate variants of an editor with several seeds, and estimate the effect of each component",
        "experiments/ablations/components.yaml --jobs 2",
    ),
    "curves": Command("kiwi.cli.curves", "plot learning curves of runs", "runs/sandbox/base --out base.png"),
    "doctor": Command("kiwi.cli.doctor", "report what is installed, what is missing and how to install it", "--json"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's) and return its exit code."""
    try:
        try:
            return _run_command(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except KiwiError as error:
        console.error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        console.error("interrupted")
        return 130
    except BrokenPipeError:
        # The reader has closed the pipe (`... | head`), so buffered output must not be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if (explained := explain_os_error(error)) is None:
            raise
        console.error(str(explained))
        return explained.exit_code


def _run_command(argv: list[str]) -> int:
    console.setup_logging()
    if "--offline" in argv:  # for every command and its child processes
        argv = [argument for argument in argv if argument != "--offline"]
        os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    if not argv or argv[0] in ("-h", "--help", "help"):
        console.print(_format_help())
        return 0 if argv else 2
    if argv[0] == "--version":
        console.print(f"kiwi {__version__}")
        return 0
    if nul := next((argument for argument in argv if "\0" in argument), None):
        raise InputError("an argument has a NUL character", code="invalid-path", got=repr(nul), fix="remove it")
    if argv[0] not in COMMANDS:
        raise InputError(
            f"there is no command {argv[0]!r}",
            code="unknown-command",
            expected=format_choices(COMMANDS, argv[0]),
            fix="run `python -m kiwi --help` for a description of each",
        )
    module = importlib.import_module(COMMANDS[argv[0]].module)
    return module.main(argv) or 0


def _format_help() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: python -m kiwi COMMAND ...", "", str(description), "", "commands:"]
    lines += [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    lines += ["", "examples:"]
    lines += [f"  python -m kiwi {name} {command.example}" for name, command in COMMANDS.items()]
    lines += [
        "",
        "`python -m kiwi COMMAND --help` shows the options of a command, `python -m kiwi --version` the version.",
        "`--offline`, with any command, forbids requests to the Hugging Face hub.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
