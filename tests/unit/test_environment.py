"""kiwi.environment: the record beside every result is complete, cheap and safe to publish."""

import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kiwi
from kiwi.environment import environment, redact_command, source_root


def test_the_record_is_json_with_the_installed_versions():
    record = json.loads(json.dumps(environment()))
    assert set(record) == {"kiwi", "python", "platform", "packages", "hardware", "devices", "git", "command"}
    assert record["kiwi"] == kiwi.__version__
    assert record["python"] == platform.python_version()
    assert record["packages"]["torch"] == importlib.metadata.version("torch")
    assert record["hardware"]["cores"] >= 1
    assert record["hardware"]["memory_bytes"] > 1e9


def test_the_commit_is_that_of_the_checkout():
    root = source_root()
    if root is None or not (root / ".git").exists():
        pytest.skip("not a git checkout")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
    if head.returncode:
        pytest.skip("git does not read this checkout")
    record = environment()["git"]
    assert record["commit"] == head.stdout.strip()
    assert re.fullmatch(r"[0-9a-f]{40,64}", record["commit"])
    assert isinstance(record["changed"], bool)


def test_the_record_contains_no_environment_variables_and_no_home_folder(monkeypatch):
    monkeypatch.setenv("KIWI_TEST_VARIABLE", "precious-value")
    text = json.dumps(environment([str(Path.home() / "bin/tool"), f"--out={Path.home()}/runs/1"]))
    assert "precious-value" not in text
    assert str(Path.home()) + "/" not in text


def test_the_record_imports_no_large_package():
    code = "import sys; from kiwi.environment import environment; environment(); print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    assert {"torch", "numpy", "av", "lightning"} & set(process.stdout.split()) == set()


@pytest.mark.parametrize(
    ("argv", "redacted"),
    [
        (["/x/kiwi/__main__.py", "fit", "--config", "a b.yaml"], "python -m kiwi fit --config 'a b.yaml'"),
        (["/usr/bin/kiwi", "fit"], "kiwi fit"),
        (["t", "/home/ann/x", "--out=/Users/bob/runs"], "t '~/x' '--out=~/runs'"),
        (["t", "/mnt/home/ann"], "t /mnt/home/ann"),
        (["t", "--api-key", "abc", "x"], "t --api-key '***' x"),
        (["t", "--judge.api_key=abc"], "t '--judge.api_key=***'"),
        (["t", "--hf-token", "--steps", "3"], "t --hf-token --steps 3"),
        (["t", "--model.tokenizer", "a", "--data.key_frames=4"], "t --model.tokenizer a --data.key_frames=4"),
        (["t", "hf_abcdefghijkl", "gemini:key=AIzaSyA1234567"], "t '***' 'gemini:key=***'"),
        (["t", "https://ann:pw@example.org/x"], "t 'https://***@example.org/x'"),
    ],
)
def test_home_folders_and_secrets_are_removed_from_a_command_line(argv, redacted):
    assert redact_command(argv) == redacted
