"""Metrics of a run: the append-only file metrics.jsonl in its folder, and their use in ablation studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

from kiwi.errors import InputError
from kiwi.evaluation.measurement import Measurement, Metric, MetricValues
from kiwi.media.journal import Journal

METRICS_FILE = "metrics.jsonl"
"""File in a run folder with one line of metrics per logged step."""

LOWER_IS_BETTER_SUBSTRINGS = ("loss", "lpips")
"""Substrings of the names of metrics for which lower values are better."""

CONTROL_SUBSTRINGS = ("swapped", "blind")
"""Substrings of the names of losses with a swapped source or without one: neither direction is better for these."""


def read_log(run: Path | str) -> dict[int, dict[str, float]]:
    """Read the training and validation metrics of a run folder, by optimizer step.

    A resumed run may repeat steps: later values replace earlier ones. Lines without metrics are skipped.
    """
    log: dict[int, dict[str, float]] = {}
    for record in Journal(Path(run) / METRICS_FILE).read():
        step = record.pop("step", None)
        if type(step) is int and all(isinstance(value, (int, float)) for value in record.values()):
            log[step] = log.get(step, {}) | {name: float(value) for name, value in record.items()}
    return log


def last_values(log: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Last value of each metric in a log (see `read_log`); non-finite values are omitted."""
    values: dict[str, float] = {}
    for step in sorted(log):
        values |= log[step]
    return {name: value for name, value in values.items() if isfinite(value)}


@dataclass(frozen=True, kw_only=True)
class ValidationMeasurement(Measurement):
    """Metrics of the last validation of a training run, which need no results folder of their own.

    Args:
        names: names of the metrics, such as val/loss.
    """

    section: ClassVar[str] = "validation"
    names: tuple[str, ...] = ("val/loss",)

    @classmethod
    def from_study(cls, settings: Any) -> Sequence[ValidationMeasurement]:
        """Parse the value of `validation` in a study: a list of metric names."""
        if not isinstance(settings, list) or not all(isinstance(name, str) for name in settings):
            problem, expected = "validation is not a list of names", "a list of names such as [val/loss]"
            raise InputError(problem, code="wrong-type", got=settings, expected=expected)
        return (cls(names=tuple(settings)),)

    @property
    def name(self) -> str:
        return self.section

    def list_metrics(self) -> Sequence[Metric]:
        """The metrics: lower is better for losses and distances, neither for controls, higher for all others."""
        return [_metric_from_name(name) for name in self.names]

    def collect(self, folder: Path) -> MetricValues:
        """All finite validation metrics of a run folder, including those that are not in `names`."""
        values = last_values(read_log(folder)) if (folder / METRICS_FILE).is_file() else {}
        return MetricValues(scalars={name: value for name, value in values.items() if name.startswith("val/")})


def _metric_from_name(name: str) -> Metric:
    if any(part in name for part in CONTROL_SUBSTRINGS):
        return Metric(name=name, better="neither")
    is_lower_better = any(part in name for part in LOWER_IS_BETTER_SUBSTRINGS)
    return Metric(name=name, better="lower" if is_lower_better else "higher")
