"""A small benchmark on the disk, and a judge with scripted answers."""

import threading
import time
from pathlib import Path

import pytest

from kiwi.bench.judges import Judge, JudgeAnswer, JudgeError, Question
from kiwi.bench.ledger import LEDGER_FILE, Ledger
from kiwi.bench.rubric import read_builtin_rubrics
from kiwi.bench.runner import JudgingTask, RateLimit, Runner
from kiwi.bench.suites import read_suite
from kiwi.sandbox.export import SandboxExportOptions, export_sandbox

FAST = RateLimit(concurrency=4, first_wait=0.01)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Ten items of the sandbox in OpenVE-Bench's layout, two per category."""
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
    return read_builtin_rubrics(suite)


class ScriptedJudge(Judge):
    """Answers 4, 3, 5, or what `answer` returns for the question and the number of times it was asked before."""

    name, version, frames = "scripted", "1", "none"

    def __init__(self, answer=None, seconds=0.0):
        self.answer, self.wait = answer, seconds
        self.questions: list[Question] = []
        self.lock, self.in_flight, self.max_in_flight = threading.Lock(), 0, 0

    def ask(self, question):
        with self.lock:
            times_asked = sum(earlier.key == question.key for earlier in self.questions)
            self.questions.append(question)
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
        time.sleep(self.wait)
        with self.lock:
            self.in_flight -= 1
        answer = (4, 3, 5) if self.answer is None else self.answer(question, times_asked)
        if isinstance(answer, JudgeError):
            raise answer
        if isinstance(answer, str):
            return JudgeAnswer(reply=answer)
        lines = [f"{name}: {score}" for name, score in zip(question.rubric.dimensions, answer, strict=True)]
        return JudgeAnswer(reply="\n".join(lines))


def copy_sources(items, folder: Path):
    """Write the unedited sources under the names of edits."""
    folder.mkdir(exist_ok=True)
    for item in items:
        (folder / item.edited_name).write_bytes(item.source.read_bytes())
    return folder


def make_task(item, edited: Path, **changes):
    """A task that requests one answer about an edit of the item."""
    fields = {"id": item.id, "item": item, "instruction": item.instruction, "edited": edited, "repeats": [0]}
    return JudgingTask(**(fields | changes))


def make_runner(suite, rubrics, judge, folder: Path, rate_limit=FAST):
    """A runner with the ledger of a folder."""
    return Runner(suite, rubrics, judge, Ledger(folder / LEDGER_FILE), rate_limit)
