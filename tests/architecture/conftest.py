"""The files of the source tree and their syntax trees, which the rules are checked on."""

import ast
import configparser
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the source tree."""
    return ROOT


@pytest.fixture(scope="session")
def setup_cfg() -> configparser.ConfigParser:
    """The parsed setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


@pytest.fixture(scope="session")
def tree() -> list[Path]:
    """Every file that is, or would be, tracked; without git, every file of the fixed top-level names."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        files = [ROOT / name for name in output.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        folders = ("kiwi", "experiments", "benchmarks", "tests", ".ci")
        files = [p for folder in folders for p in (ROOT / folder).rglob("*") if "__pycache__" not in p.parts]
        files += [p for p in ROOT.iterdir() if p.name != ".git"]
    return sorted(path for path in files if path.is_file())


@pytest.fixture(scope="session")
def sources() -> dict[str, str]:
    """The package's Python files: path relative to the root -> text."""
    return {str(p.relative_to(ROOT)): p.read_text() for p in sorted((ROOT / "kiwi").rglob("*.py"))}


@pytest.fixture(scope="session")
def parsed(sources: dict[str, str]) -> dict[str, ast.Module]:
    """Their syntax trees."""
    return {name: ast.parse(text, name) for name, text in sources.items()}
