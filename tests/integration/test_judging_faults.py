"""benchmarks/resume/judging.py with few questions and one kill."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "resume" / "judging.py"


def test_a_ledger_agrees_with_a_server_that_fails_after_a_kill(tmp_path):
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "faults"), "--items", "10", "--repeats", "6"]
    done = subprocess.run([*command, "--kills", "1"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "questions with scores" in done.stdout
