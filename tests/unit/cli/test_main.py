"""python -m kiwi: the table of commands, its help, and how exceptions become exit codes."""

import importlib.metadata
import importlib.util
import logging
import os
import subprocess
import sys

import pytest

import kiwi
from kiwi.__main__ import COMMANDS, Command, main

HEAVY = {"torch", "lightning", "transformers", "diffusers", "numpy", "av"}

PROBE = """
import errno

from kiwi.errors import MediaError

class SpecialError(MediaError):
    exit_code = 7

def main(argv):
    if argv[1] == "media":
        raise SpecialError("clip.mp4 [0] cannot be read", code="unreadable", fix="check it")
    if argv[1] == "interrupt":
        raise KeyboardInterrupt
    if argv[1] == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "judgements.jsonl")
    if argv[1] == "bug":
        raise RuntimeError("a bug")
    return {"none": None, "one": 1, "argv": argv}[argv[1]]
"""


@pytest.fixture(autouse=True)
def _logging():
    """Restore the logging configuration, which main changes."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """A command that returns or raises whatever its argument says."""
    (tmp_path / "kiwi_probe.py").write_text(PROBE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(COMMANDS, "probe", Command("kiwi_probe", "end in some way", ""))
    monkeypatch.delitem(sys.modules, "kiwi_probe", raising=False)


def test_help_lists_every_command_with_a_summary_and_an_example(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name:<8}  {command.summary}\n" in out
        assert f"  python -m kiwi {name} {command.example}\n" in out


def test_no_arguments_show_the_help_and_fail(capsys):
    assert main([]) == 2
    assert "usage: python -m kiwi COMMAND" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kiwi {kiwi.__version__}\n"


def test_help_imports_nothing_heavy():
    code = "import sys; from kiwi.__main__ import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    assert "commands:" in process.stdout
    assert set(process.stderr.split()) & HEAVY == set()


def test_kiwi_runs_as_a_module_and_as_a_script():
    process = subprocess.run([sys.executable, "-m", "kiwi", "--version"], capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stdout) == (0, f"kiwi {kiwi.__version__}\n")
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="kiwi")
    assert script.load() is main


@pytest.mark.parametrize("name", COMMANDS)
def test_the_module_of_every_command_exists(name):
    assert callable(importlib.import_module(COMMANDS[name].module).main)


def test_an_unknown_command_is_rejected_with_the_choices_and_the_closest_one(capsys):
    assert main(["edti", "x"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: there is no command 'edti'. Expected: one of fit, validate, cache, ")
    assert "(did you mean edit?)" in err


def test_a_command_gets_its_name_and_arguments_and_returning_none_is_success(probe):
    assert main(["probe", "argv", "--x", "1"]) == ["probe", "argv", "--x", "1"]
    assert main(["probe", "none"]) == 0
    assert main(["probe", "one"]) == 1


def test_a_kiwi_error_prints_its_message_and_returns_its_exit_code(probe, capsys):
    assert main(["probe", "media"]) == 7
    assert capsys.readouterr() == ("", "error: clip.mp4 [0] cannot be read. Fix: check it.\n")


def test_an_interrupt_prints_one_line_and_returns_130(probe, capsys):
    assert main(["probe", "interrupt"]) == 130
    assert capsys.readouterr() == ("", "error: interrupted\n")


def test_a_full_disk_is_reported_without_a_traceback(probe, capsys):
    assert main(["probe", "full"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert message.startswith("error: no space left on the disk. Got: judgements.jsonl. Fix: free some space")


def test_a_bug_keeps_its_traceback(probe):
    with pytest.raises(RuntimeError, match="a bug"):
        main(["probe", "bug"])


@pytest.mark.parametrize("command", ["--help", "doctor --help"])
def test_a_closed_pipe_prints_no_error(command):
    code = f"import sys; from kiwi.__main__ import main; sys.stdin.read(); sys.exit(main({command.split()}))"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], env=buffered, **pipes) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(60) != 0


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_command_runs_if_its_output_streams_are_closed(closed):
    command = f"exec {sys.executable} -m kiwi doctor --help {closed}"
    process = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stderr) == (0, "")
