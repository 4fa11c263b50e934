"""The pages of the documentation and their contents: code blocks, commands and inline code."""

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kiwi.spec import Spec

ROOT = Path(__file__).resolve().parents[2]

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
"""Pages whose commands and code must work as they are printed."""

GUIDES = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "AGENTS.md")]
CARDS = [ROOT / "experiments/ablations/pilot/README.md", *sorted((ROOT / "kiwi/sandbox/weights").rglob("README.md"))]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LOOP = re.compile(r"for (\w+) in ([^;]+); do (.+?); done")


@dataclass(frozen=True)
class Command:
    """One command of a bash block.

    Args:
        page: file of the page, relative to the root.
        words: program and arguments, as the shell splits them.
    """

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return [text for tag, text in FENCE.findall(page.read_text(encoding="utf-8")) if tag == language]


@pytest.fixture
def page_modules(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the Python files of docs/extending.md importable; afterwards, remove them and their specs."""
    folder = tmp_path_factory.mktemp("extending")
    for block in blocks(ROOT / "docs/extending.md", "python"):
        name = block.partition("\n")[0].removeprefix("# ")
        assert name.endswith(".py"), "every block of the page begins with the name of its file"
        (folder / name).write_text(block)
    monkeypatch.syspath_prepend(str(folder))
    yield
    names = {file.stem for file in folder.glob("*.py")}
    for name, spec in list(Spec._registry.items()):
        if spec.__module__ in names:
            del Spec._registry[name]
    for name in names:
        sys.modules.pop(name, None)


def prose(page: Path) -> str:
    """The text of a page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def inline_code(page: Path) -> list[str]:
    """The `inline code` of a page."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def commands(page: Path) -> list[Command]:
    """Every command of a page's bash blocks; a loop is unrolled."""
    return [Command(str(page.relative_to(ROOT)), words) for block in blocks(page, "bash") for words in _commands(block)]


def _commands(block: str) -> Iterator[tuple[str, ...]]:
    for line in LOOP.sub(_unrolled, block.replace("\\\n", "")).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&|;"):
                if words:
                    yield tuple(words)
                words = []
            else:
                words.append(word)


def _unrolled(loop: re.Match[str]) -> str:
    variable, values, body = loop.groups()
    return "; ".join(body.replace(f"${variable}", value) for value in values.split())
