"""Validation metrics of a training run, as a measurement that ablation studies can ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

from kiwi.errors import InputError
from kiwi.evaluation.measurement import Measurement, Metric, MetricValues
from kiwi.training.run_log import METRICS_FILE, read_log

LOWER_IS_BETTER_SUBSTRINGS = ("loss", "lpips")
"""Substrings of the names of metrics for which lower values are better."""

CONTROL_SUBSTRINGS = ("swapped", "blind")
"""Substrings of control metrics: the loss with a swapped source, and that of a predictor without the source.

Neither direction is better for these."""


@dataclass(frozen=True, kw_only=True)
class ValidationMeasurement(Measurement):
    """Metrics of the last validation of a training run.

    Args:
        names: names of the metrics, such as val/loss.
    """

    section: ClassVar[str] = "validation"
    names: tuple[str, ...] = ("val/loss",)

    @classmethod
    def from_study(cls, settings: Any) -> Sequence[ValidationMeasurement]:
        """Parse the value of `validation` in a study: a list of metric names."""
        if not isinstance(settings, list) or not all(isinstance(name, str) for name in settings):
            expected = "a list of names such as [val/loss]"
            raise InputError("validation is not a list of names", code="wrong-type", got=settings, expected=expected)
        return (cls(names=tuple(settings)),)

    @property
    def name(self) -> str:
        """Name of the measurement, which has no results folder of its own."""
        return self.section

    def metrics(self) -> Sequence[Metric]:
        """The metrics; lower is better for losses and distances, higher for all others."""
        return [metric_from_name(name) for name in self.names]

    def collect(self, folder: Path) -> MetricValues:
        """All finite validation metrics of a run folder, including those that are not in `names`."""
        values = last_values(read_log(folder)) if (folder / METRICS_FILE).is_file() else {}
        return MetricValues(scalars={name: value for name, value in values.items() if name.startswith("val/")})


def metric_from_name(name: str) -> Metric:
    """The metric, and which direction is better, for a name that training logs."""
    if any(part in name for part in CONTROL_SUBSTRINGS):
        return Metric(name=name, better="neither")
    is_lower_better = any(part in name for part in LOWER_IS_BETTER_SUBSTRINGS)
    return Metric(name=name, better="lower" if is_lower_better else "higher")


def last_values(log: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Last value of each metric in a log (see `read_log`); non-finite values are omitted."""
    values: dict[str, float] = {}
    for step in sorted(log):
        values |= log[step]
    return {name: value for name, value in values.items() if isfinite(value)}
