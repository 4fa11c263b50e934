"""The numbers of a run's last validation, as a measurement of `kiwi.ablation`."""

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
CONTROL_SUBSTRINGS = ("swapped", "blind")
"""In names of losses under conditions that are wrong on purpose: neither a rise nor a fall is better by itself."""


@dataclass(frozen=True, kw_only=True)
class ValidationMeasurement(Measurement):
    """Numbers that training logs at its last validation.

    Args:
        names: of the numbers, such as val/loss.
    """

    section: ClassVar[str] = "validation"
    names: tuple[str, ...] = ("val/loss",)

    @classmethod
    def from_study(cls, settings: Any) -> Sequence[ValidationMeasurement]:
        """From a list of names."""
        if not isinstance(settings, list) or not all(isinstance(name, str) for name in settings):
            expected = "a list of names such as [val/loss]"
            raise InputError(
                "validation is not a list of names", code="invalid-metrics", got=settings, expected=expected
            )
        return (cls(names=tuple(settings)),)

    @property
    def name(self) -> str:
        """Name of the measurement; it has no folder of its own."""
        return self.section

    def metrics(self) -> Sequence[Metric]:
        """Losses and distances are better if lower, all else if higher."""
        return [metric_from_name(name) for name in self.names]

    def collect(self, folder: Path) -> MetricValues:
        """All finite validation numbers of a training run, including those that are not in `names`."""
        values = last_values(read_log(folder)) if (folder / METRICS_FILE).is_file() else {}
        return MetricValues(scalars={name: value for name, value in values.items() if name.startswith("val/")})


def metric_from_name(name: str) -> Metric:
    """The metric of a name that training logs."""
    if any(word in name for word in CONTROL_SUBSTRINGS):
        return Metric(name=name, better="neither")
    return Metric(name=name, better="lower" if any(word in name for word in LOWER_IS_BETTER_SUBSTRINGS) else "higher")


def last_values(log: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """The last value of each number of a log (`read_log`), where that is finite."""
    values: dict[str, float] = {}
    for step in sorted(log):
        values |= log[step]
    return {name: value for name, value in values.items() if isfinite(value)}
