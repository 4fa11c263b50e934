"""Benchmarks of video editors: suites, judges and their controls, scores with confidence intervals, reports.

    from kiwi.bench import BenchmarkOptions, run_benchmark

    report = run_benchmark(BenchmarkOptions(suite="openve", data="sandbox"))

Names are imported when they are first used, so that `import kiwi.bench` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kiwi.bench.agreement import measure_agreement
    from kiwi.bench.benchmark import check_benchmark, run_benchmark
    from kiwi.bench.comparison import compare_runs
    from kiwi.bench.official_rubrics import import_rubrics
    from kiwi.bench.options import (
        AgreementOptions,
        BenchmarkOptions,
        CompareOptions,
        ImportRubricsOptions,
        ShowRubricsOptions,
    )
    from kiwi.bench.report import BenchmarkReport, print_report
    from kiwi.bench.rubric import builtin_rubrics

__all__ = [
    "AgreementOptions",
    "BenchmarkOptions",
    "BenchmarkReport",
    "CompareOptions",
    "ImportRubricsOptions",
    "ShowRubricsOptions",
    "builtin_rubrics",
    "check_benchmark",
    "compare_runs",
    "import_rubrics",
    "measure_agreement",
    "print_report",
    "run_benchmark",
]

_MODULES = {
    "builtin_rubrics": "rubric",
    "check_benchmark": "benchmark",
    "compare_runs": "comparison",
    "import_rubrics": "official_rubrics",
    "measure_agreement": "agreement",
    "print_report": "report",
    "run_benchmark": "benchmark",
    "BenchmarkReport": "report",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'options')}"), name)
