"""Throughput of the judging runner relative to the ideal, with a judge that answers after a fixed time.

    python benchmarks/speed/judging.py --questions 128 --seconds 0.2

The ideal time for a number of concurrent questions is questions x seconds / concurrency. The measured time is the
median of several runs, each with an empty ledger.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from kiwi import console
from kiwi.bench.judges import Judge, JudgeAnswer, Question
from kiwi.bench.ledger import LEDGER_FILE, Ledger
from kiwi.bench.reply import format_answer
from kiwi.bench.rubric import read_builtin_rubrics
from kiwi.bench.runner import JudgingTask, RateLimit, Runner
from kiwi.bench.suites import Suite, read_items, read_suite
from kiwi.sandbox.export import SandboxExportOptions, export_sandbox
from kiwi.tables import Table


class SlowJudge(Judge):
    """Judge that answers after a fixed time."""

    name, version, frames = "slow", "1", "none"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def ask(self, question: Question) -> JudgeAnswer:
        time.sleep(self.seconds)
        return JudgeAnswer(reply=format_answer(dict.fromkeys(question.rubric.dimensions, 3.0)))


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=128, help="number of questions (default: 128)")
    parser.add_argument("--seconds", type=float, default=0.2, help="time until a question is answered (default: 0.2)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32], help="concurrent questions")
    parser.add_argument("--runs", type=int, default=3, help="runs; the result is their median (default: 3)")
    options = parser.parse_args()
    suite = read_suite("openve")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        export_sandbox(
            SandboxExportOptions(
                out=data, items=8, frames=5, size=32, categories=tuple(suite.categories), level="easy", split="test"
            )
        )
        items = read_items(suite, data).items
        repeats = range(-(-options.questions // len(items)))
        tasks = [
            JudgingTask(id=item.id, item=item, instruction=item.instruction, edited=item.source, repeats=repeats)
            for item in items
        ]
        questions = len(items) * len(repeats)
        for concurrency in options.concurrency:
            times = [
                measure_seconds(suite, tasks, concurrency, options.seconds, Path(folder)) for _ in range(options.runs)
            ]
            ideal, measured = -(-questions // concurrency) * options.seconds, statistics.median(times)
            rows.append((concurrency, questions, f"{ideal:.2f}", f"{measured:.2f}", f"{ideal / measured:.0%}"))
    header = ("concurrency", "questions", "ideal (s)", "measured (s)", "ideal / measured")
    console.table(Table("Judging", header, rows))
    return 0


def measure_seconds(suite: Suite, tasks: list[JudgingTask], concurrency: int, seconds: float, folder: Path) -> float:
    """Measure the time of a run with an empty ledger."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        ledger, limit = Ledger(Path(out) / LEDGER_FILE), RateLimit(concurrency=concurrency)
        runner = Runner(suite, read_builtin_rubrics(suite), SlowJudge(seconds), ledger, limit)
        start = time.perf_counter()
        runner.run(tasks)
        return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
