"""The record of a finished run, result.json: values of items, scalars, learning curves and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from statistics import median
from typing import Any

from kiwi.ablation.steps import Step
from kiwi.errors import InputError
from kiwi.media.run_dir import read_record
from kiwi.training.run_log import METRICS_FILE, read_log
from kiwi.training.validation import last_values

CURVES = ("loss", "val/loss")
SIGMA_PREFIXES = ("gamma_at_", "val/loss_at_")
"""Values by noise level, whose name ends with sigma; the last ones are recorded."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run.

    Args:
        label, seed: the run's arm and seed.
        items: value by metric (such as "sandbox overall") and item.
        categories: of the items.
        clusters: the source video of an item, where several share one.
        numbers: scalars of the last validation.
        curves: (step, value) by name, stages one after another.
        by_sigma: last values by noise level, by prefix.
        cost: seconds and steps, and samples_per_second and memory_gib where a run logged them.
    """

    label: str
    seed: int
    items: Mapping[str, Mapping[str, float]]
    categories: Mapping[str, str]
    clusters: Mapping[str, str]
    numbers: Mapping[str, float]
    curves: Mapping[str, Sequence[Sequence[float]]]
    by_sigma: Mapping[str, Mapping[str, float]]
    cost: Mapping[str, float] = field(default_factory=dict)

    def values(self, metric: str) -> dict[str, float]:
        """Values by item; a scalar has a single unnamed item; empty without the metric."""
        if metric in self.items:
            return dict(self.items[metric])
        return {"": self.numbers[metric]} if metric in self.numbers else {}


def read_result(file: Path) -> RunResult:
    """A run's result. Raises InputError for a file that is not one."""
    fix = "delete it to measure the run again"
    try:
        record = read_record(file)
        record.pop("fingerprint", None)
        cost = {**record.pop("cost"), "seconds": float(record.pop("seconds"))}
        result = RunResult(**record, cost=cost)
        if not all(result.items.values()):
            raise ValueError("a metric without items")
        if not all(isfinite(value) for of in (result.numbers, *result.items.values()) for value in of.values()):
            raise ValueError("values that are not finite")
        if not all(item in result.categories for of in result.items.values() for item in of):
            raise ValueError("items without a category")
    except InputError as problem:
        raise InputError(f"cannot read {file}", code="invalid-result", got=problem.got, fix=fix) from None
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise InputError(f"{file} is not the result of a run", code="invalid-result", got=problem, fix=fix) from None
    return result


def collect(steps: Sequence[Step]) -> dict[str, Any]:
    """Gather what the steps of a run wrote: the fields of `RunResult` except label and seed.

    Raises:
        KiwiError: a measurement found nothing, or its files cannot be read.
    """
    measurements = [step.measurement.collect(step.out) for step in steps if step.measurement is not None]
    training = [step.out for step in steps if step.measurement is None]
    logs = [read_log(folder) for folder in training if (folder / METRICS_FILE).is_file()]
    last = last_values(logs[-1]) if logs else {}
    speeds = [line["samples_per_second"] for log in logs for line in log.values() if "samples_per_second" in line]
    memory = [line["memory_gib"] for log in logs for line in log.values() if "memory_gib" in line]
    return {
        "items": {metric: dict(items) for values in measurements for metric, items in values.items.items() if items},
        "categories": {item: category for values in measurements for item, category in values.categories.items()},
        "clusters": {item: cluster for values in measurements for item, cluster in values.clusters.items()},
        "numbers": {metric: value for values in measurements for metric, value in values.scalars.items()},
        "curves": {name: _curve(logs, name) for name in CURVES},
        "by_sigma": {
            prefix: {name.removeprefix(prefix): value for name, value in last.items() if name.startswith(prefix)}
            for prefix in SIGMA_PREFIXES
        },
        "cost": {
            "steps": float(sum(max(log, default=0) for log in logs)),
            **({"samples_per_second": median(speeds)} if speeds else {}),
            **({"memory_gib": max(memory)} if memory else {}),
        },
    }


def _curve(logs: Sequence[Mapping[int, Mapping[str, float]]], name: str) -> list[list[float]]:
    points, before = [], 0
    for log in logs:
        points += [[before + step, log[step][name]] for step in sorted(log) if isfinite(log[step].get(name, inf))]
        before += max(log, default=0)
    return points
