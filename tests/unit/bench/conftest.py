"""Little benchmarks on the disk, and judges that say what they are told to."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from kiwi.bench.judges import Judge, JudgeError, Question
from kiwi.bench.rubric import builtin_rubrics
from kiwi.bench.suites import read_suite
from kiwi.sandbox.export import SandboxExportOptions, export_sandbox


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Ten items of the sandbox in OpenVE-Bench's layout, two a category."""
    folder = tmp_path_factory.mktemp("world") / "data"
    categories = ("local_change", "local_remove", "local_add", "background_change", "global_style")
    export_sandbox(
        SandboxExportOptions(out=folder, items=10, frames=5, size=32, categories=categories, level="easy", split="test")
    )
    return folder


@pytest.fixture(scope="session")
def suite():
    return read_suite("openve")


@pytest.fixture(scope="session")
def rubrics(suite):
    return builtin_rubrics(suite)


class ScriptedJudge(Judge):
    """Says 4, 3, 5; or whatever a function makes of the question and of how often it was asked before."""

    name, version, frames = "told", "1", "none"

    def __init__(self, says=None, seconds=0.0):
        self.says, self.wait = says, seconds
        self.questions: list[Question] = []
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    def ask(self, question):
        with self.lock:
            before = sum(earlier.key == question.key for earlier in self.questions)
            self.questions.append(question)
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.wait)
        with self.lock:
            self.now -= 1
        numbers = (4, 3, 5) if self.says is None else self.says(question, before)
        if isinstance(numbers, JudgeError):
            raise numbers
        if isinstance(numbers, str):
            return numbers
        return "\n".join(f"{name}: {n}" for name, n in zip(question.rubric.dimensions, numbers, strict=True))


def copy_sources(items, folder: Path):
    """The unedited sources under the names of edits."""
    folder.mkdir(exist_ok=True)
    for item in items:
        (folder / item.edited_name).write_bytes(item.source.read_bytes())
    return folder
