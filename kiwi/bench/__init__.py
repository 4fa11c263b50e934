"""Benchmarks of video editors: suites, judges and their controls, scores with confidence intervals, reports.

from kiwi.bench import BenchmarkOptions, run_benchmark

report = run_benchmark(BenchmarkOptions(suite="openve", data="sandbox"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kiwi.bench.options import AgreementOptions, BenchmarkOptions, CompareOptions, ImportRubricsOptions

if TYPE_CHECKING:
    from kiwi.bench.benchmark import check_benchmark, run_benchmark
    from kiwi.bench.comparison import compare_runs, measure_agreement
    from kiwi.bench.rubric import import_rubrics

__all__ = [
    "AgreementOptions",
    "BenchmarkOptions",
    "CompareOptions",
    "ImportRubricsOptions",
    "check_benchmark",
    "compare_runs",
    "import_rubrics",
    "measure_agreement",
    "run_benchmark",
]

_MODULES = {
    "check_benchmark": "benchmark",
    "compare_runs": "comparison",
    "import_rubrics": "rubric",
    "measure_agreement": "comparison",
    "run_benchmark": "benchmark",
}
"""Module of each function, imported when the function is first used because the import takes a second."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
