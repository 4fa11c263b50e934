"""How near the benchmark's runner comes to a judge's own speed: a judge that answers after a fixed time.

    python benchmarks/speed/judging.py --questions 128 --seconds 0.2

For each number of questions at once: the time that the judge alone would need (questions x seconds / at once), and the
share of the measured time that this is. Median of several runs, each with a new ledger.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from kiwi import console
from kiwi.bench.judges import Judge, Question
from kiwi.bench.ledger import LEDGER, Ledger
from kiwi.bench.rate_limit import RateLimit
from kiwi.bench.rubric import builtin_rubrics
from kiwi.bench.runner import JudgingTask, Runner
from kiwi.bench.suites import read_items, read_suite
from kiwi.sandbox.export import SandboxExportOptions, export_sandbox


class Slow(Judge):
    """Answers after a fixed time."""

    name, version, frames = "slow", "1", "none"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def ask(self, question: Question) -> str:
        time.sleep(self.seconds or 0)
        return "\n".join(f"{name}: 3" for name in question.rubric.dimensions)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=128, help="answers asked for (default: 128)")
    parser.add_argument("--seconds", type=float, default=0.2, help="of an answer (default: 0.2)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32], help="questions at once")
    parser.add_argument("--runs", type=int, default=3, help="of which the median is told")
    options = parser.parse_args()
    suite = read_suite("openve")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        categories = tuple(suite.categories)
        export_sandbox(
            SandboxExportOptions(
                out=data, items=8, frames=5, size=32, categories=categories, level="easy", split="test"
            )
        )
        cases = read_items(suite, data).items
        repeats = range(-(-options.questions // len(cases)))
        tasks = [
            JudgingTask(id=case.id, item=case, instruction=case.instruction, edited=case.source, repeats=repeats)
            for case in cases
        ]
        for concurrency in options.concurrency:
            times = [_run(tasks, suite, concurrency, options.seconds, Path(folder)) for _ in range(options.runs)]
            asked, taken = len(cases) * len(repeats), statistics.median(times)
            ideal = -(-asked // concurrency) * options.seconds
            rows.append((concurrency, asked, f"{ideal:.2f}", f"{taken:.2f}", f"{ideal / taken:.0%}"))
    header = ("at once", "questions", "judge alone, s", "runner, s", "of the ideal")
    console.table("Judging", header, rows)
    return 0


def _run(tasks, suite, concurrency: int, seconds: float, folder: Path) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        runner = Runner(
            suite, builtin_rubrics(suite), Slow(seconds), Ledger(Path(out) / LEDGER), RateLimit(concurrency=concurrency)
        )
        began = time.perf_counter()
        runner.run(tasks)
        return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
