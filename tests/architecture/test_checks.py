"""Lint, format, types and import contracts are tests, so `pytest` runs every check."""

import subprocess
import sys

import pytest

CHECKS = {
    "ruff check": ["-m", "ruff", "check", "."],
    "ruff format": ["-m", "ruff", "format", "--check", "."],
    "mypy": ["-m", "mypy"],
    "import contracts": ["-c", "from importlinter.cli import lint_imports_command as main; main()"],
}


@pytest.mark.parametrize("check", CHECKS)
def test_check_passes(check, root):
    process = subprocess.run([sys.executable, *CHECKS[check]], cwd=root, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, f"{check} fails:\n{process.stdout}{process.stderr}"
