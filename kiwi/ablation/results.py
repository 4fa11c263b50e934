"""result.json, the record of a finished run: values of all items, scalar metrics, learning curves and cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from statistics import median
from typing import Any

from kiwi.ablation.steps import Step
from kiwi.errors import InputError, KiwiError
from kiwi.evaluation.measurement import Measurement, MetricValues
from kiwi.media.run_dir import read_record
from kiwi.training.run_log import METRICS_FILE, last_values, read_log

CURVES = ("loss", "val/loss")
"""Logged metrics whose curves are recorded."""

SIGMA_PREFIXES = ("gamma_at_", "val/loss_at_")
"""Prefixes of logged metrics whose name ends with a noise level; their last values are recorded."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The results of a finished run.

    Args:
        label: label of the run's arm, which is one variant of the configuration.
        seed: seed of the run.
        items: value by metric (such as "sandbox overall") and item id.
        categories: category by item id.
        clusters: source video by item id, for items that share their source video with others.
        scalar_metrics: value by metric of the last validation; `numbers` in result.json.
        curves: list of (step, value) by metric; the steps of all stages are counted through.
        by_sigma: last value by prefix and noise level.
        cost: seconds and steps, and samples_per_second and memory_gib if they were logged.
    """

    label: str
    seed: int
    items: Mapping[str, Mapping[str, float]]
    categories: Mapping[str, str]
    clusters: Mapping[str, str]
    scalar_metrics: Mapping[str, float]
    curves: Mapping[str, Sequence[Sequence[float]]]
    by_sigma: Mapping[str, Mapping[str, float]]
    cost: Mapping[str, float] = field(default_factory=dict)

    def values(self, metric: str) -> dict[str, float]:
        """Return the values of a metric by item id; a scalar metric has one item with an empty id."""
        if metric in self.items:
            return dict(self.items[metric])
        return {"": self.scalar_metrics[metric]} if metric in self.scalar_metrics else {}


def read_result(file: Path) -> RunResult:
    """Read a result.json. Raises InputError if it cannot be read or is not the result of a run."""
    fix = "delete the file and rerun the study"
    try:
        record = read_record(file)
        record.pop("fingerprint", None)
        cost = {**record.pop("cost"), "seconds": float(record.pop("seconds"))}
        scalar_metrics = record.pop("numbers")
        result = RunResult(**record, scalar_metrics=scalar_metrics, cost=cost)
        if not all(result.items.values()):
            raise ValueError("a metric has no items")
        metrics = (result.scalar_metrics, *result.items.values())
        if not all(isfinite(value) for metric in metrics for value in metric.values()):
            raise ValueError("a value is not finite")
        if not all(item in result.categories for metric in result.items.values() for item in metric):
            raise ValueError("an item has no category")
    except InputError as error:
        raise InputError(f"cannot read {file}", code="invalid-result", got=error.got, fix=fix) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{file} is not the result of a run", code="invalid-result", got=error, fix=fix) from None
    return result


def _collect_values(measurement: Measurement, folder: Path) -> MetricValues:
    """Collect the values of a measurement; an exception that is no KiwiError becomes one that names the folder."""
    try:
        return measurement.collect(folder)
    except KiwiError:
        raise
    except (OSError, ValueError, TypeError, LookupError) as error:
        problem = f"the results of {measurement.name} in {folder} are missing or damaged"
        got, fix = f"{type(error).__name__}: {error}", f"remove {folder} and rerun the same command"
        raise InputError(problem, code="invalid-result", got=got, fix=fix) from error


def collect_results(steps: Sequence[Step]) -> dict[str, Any]:
    """Collect what the steps of a run wrote, in the format of result.json without the label and seed.

    Raises:
        KiwiError: a measurement has no values, or its files cannot be read.
    """
    measurements = [_collect_values(step.measurement, step.out) for step in steps if step.measurement is not None]
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
        "curves": {name: _join_curves(logs, name) for name in CURVES},
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


def _join_curves(logs: Sequence[Mapping[int, Mapping[str, float]]], name: str) -> list[list[float]]:
    points, offset = [], 0
    for log in logs:
        points += [[offset + step, log[step][name]] for step in sorted(log) if isfinite(log[step].get(name, inf))]
        offset += max(log, default=0)
    return points
