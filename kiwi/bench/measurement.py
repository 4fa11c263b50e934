"""Benchmarks as a measurement of ablation studies: the judge's score of every item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from kiwi import console
from kiwi.bench.benchmark import check_benchmark, make_export_options, run_benchmark
from kiwi.bench.options import BenchmarkOptions
from kiwi.bench.report import list_warnings, print_report
from kiwi.bench.run_folder import read_run
from kiwi.bench.scoring import SCORE_KINDS
from kiwi.bench.suites import read_items, read_suite
from kiwi.errors import InputError
from kiwi.evaluation.measurement import Measurement, Metric, MetricValues, parse_options
from kiwi.sandbox.pairs import count_by_category
from kiwi.spec import from_dict


@dataclass(frozen=True, kw_only=True)
class BenchmarkMeasurement(Measurement):
    """A benchmark of a trained model.

    Args:
        settings: options of the benchmark; the study sets model, out and name for each model.
    """

    section: ClassVar[str] = "bench"
    command: ClassVar[str] = "bench"

    settings: BenchmarkOptions

    @classmethod
    def from_study(cls, settings: Any) -> Sequence[BenchmarkMeasurement]:
        """Read options by suite; the gallery is off unless the options turn it on."""
        if not isinstance(settings, dict | None):
            expected = "a mapping of suites, such as {openve: {data: sandbox}}"
            raise InputError("measure.bench is not a mapping", code="wrong-type", got=repr(settings), expected=expected)
        return [
            cls(
                settings=parse_options(
                    BenchmarkOptions, settings, f"bench.{suite}", defaults={"gallery": False},
                    fixed={"suite": suite, "model": "model", "out": "out", "name": "edited"},
                    forbidden=("videos", "part"),
                )
            )
            for suite, settings in (settings or {}).items()
        ]  # fmt: skip

    @property
    def name(self) -> str:
        """Name of the folder that holds its results, such as bench-openve."""
        return f"bench-{self.settings.suite}"

    def list_metrics(self) -> Sequence[Metric]:
        """The mean over an item's dimensions, raw and capped."""
        return [Metric(name=f"{self.settings.suite} {kind}") for kind in SCORE_KINDS]

    def check(self) -> None:
        """Raise an InputError if the data, the judge or the rubrics are missing."""
        check_benchmark(self.settings)

    def count_items(self) -> Mapping[str, int]:
        """Count the items of each category, rendered or read from the data."""
        suite = read_suite(self.settings.suite)
        if self.settings.renders_data:
            export = make_export_options(self.settings, suite, Path())
            return count_by_category(export.items, export.categories)
        return Counter(item.category for item in read_items(suite, Path(self.settings.data_name)).items)

    def make_options(self, model: Path, out: Path) -> BenchmarkOptions:
        """Options of `kiwi bench` for one model."""
        return self.settings.replace(model=str(model), out=out)

    @classmethod
    def run(cls, options: Mapping[str, Any]) -> int:
        """Run the benchmark and return its exit code: 1, after a message, if answers of the judge are missing."""
        report = run_benchmark(from_dict(BenchmarkOptions, options))
        assert report is not None  # None only with `part`, which a study may not set
        print_report(report)
        if report.is_success:
            return 0
        console.error(" ".join(list_warnings(report)))
        return 1

    def collect(self, folder: Path) -> MetricValues:
        """Read the scores of all items; items of one source video form a cluster."""
        scored = {f"{self.settings.suite}/{score.item.id}": score for score in read_run(folder).scored}
        return MetricValues(
            items={
                metric.name: {item: score.mean(kind) for item, score in scored.items()}
                for metric, kind in zip(self.list_metrics(), SCORE_KINDS, strict=True)
            },
            categories={item: score.item.category for item, score in scored.items()},
            clusters={item: score.item.source.name for item, score in scored.items()},
        )
