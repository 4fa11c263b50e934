"""result.json, the record of a finished run: values of all items, scalar metrics, learning curves and cost."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from statistics import median
from typing import Any

from kiwi.ablation.steps import Step
from kiwi.errors import InputError, KiwiError, SpecError
from kiwi.evaluation.measurement import Measurement, MetricValues
from kiwi.media.journal import CHECKSUM, is_unchanged
from kiwi.media.run_dir import read_record
from kiwi.spec import Spec, from_dict
from kiwi.training.run_log import METRICS_FILE, last_values, read_log

CURVES = ("loss", "val/loss")
"""Logged metrics whose curves are recorded."""

SIGMA_PREFIXES = ("gamma_at_", "val/loss_at_")
"""Prefixes of logged metrics whose name ends with a noise level; their last values are recorded."""

MAX_VALUE = 1e100
"""Largest magnitude of a value in result.json; the squares of larger ones overflow."""


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
        curves: list of (step, value) by metric; the steps of a stage follow those of the stage before.
        by_sigma: last value by prefix and noise level.
        cost: seconds and steps, and samples_per_second and memory_gib if they were logged.
        fingerprint: hash of the run's configuration and measurements (`kiwi.ablation.runs.Run`).
        is_checked: whether the file has a checksum of its content, which those of the previous release lack.
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
    fingerprint: str = ""
    is_checked: bool = False

    def values(self, metric: str) -> dict[str, float]:
        """Return the values of a metric by item id; a scalar metric has one item with an empty id."""
        if metric in self.items:
            return dict(self.items[metric])
        return {"": self.scalar_metrics[metric]} if metric in self.scalar_metrics else {}


@dataclass(frozen=True, kw_only=True)
class _ResultRecord(Spec):
    """The fields of result.json; `from_dict` checks their types."""

    label: str
    seed: int
    fingerprint: str = ""
    items: dict[str, dict[str, float]]
    categories: dict[str, str]
    clusters: dict[str, str]
    numbers: dict[str, float]
    curves: dict[str, list[tuple[float, float]]]
    by_sigma: dict[str, dict[str, float]]
    cost: dict[str, float]
    seconds: float

    def __post_init__(self) -> None:
        fields = ((name, value) for name, value in vars(self).items() if name not in ("label", "seed", "fingerprint"))
        for path, value in itertools.chain.from_iterable(_iterate_values(*pair) for pair in fields):
            if isinstance(value, float) and not abs(value) <= MAX_VALUE:
                expected = f"a number of at most {MAX_VALUE:g}"
                raise SpecError(f"{path} is out of range", code="out-of-range", got=value, expected=expected)
        for metric, values in self.items.items():
            if not values:
                raise SpecError(f"items.{metric} is empty", code="out-of-range", expected="a value for each item")
            if unknown := next((item for item in values if item not in self.categories), None):
                raise SpecError(f"categories has no entry for {unknown!r}", code="missing-field")
        for prefix, level in ((prefix, level) for prefix, values in self.by_sigma.items() for level in values):
            if not re.fullmatch(r"\d+(\.\d+)?(e-\d\d)?", level, re.ASCII):
                expected = "a noise level such as 0.5"
                problem = f"by_sigma.{prefix} has an invalid key"
                raise SpecError(problem, code="wrong-type", got=repr(level), expected=expected)


def _iterate_values(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over the values in nested mappings and sequences, with their paths."""
    if isinstance(value, dict):
        inner = ((f"{path}.{key}", item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        inner = ((f"{path}[{index}]", item) for index, item in enumerate(value))
    else:
        yield path, value
        return
    for name, item in inner:
        yield from _iterate_values(name, item)


def read_result(file: Path) -> RunResult:
    """Read a result.json.

    Raises:
        InputError: it is damaged, has values of wrong types (the message names the field), or was changed by hand.
    """
    fix = "delete the file and rerun the same command"
    try:
        content = read_record(file)
        is_checked, is_original = CHECKSUM in content, is_unchanged(content)
        record: _ResultRecord = from_dict(_ResultRecord, content)
    except (InputError, SpecError) as error:
        problem = f"{file} is not the result of a run"
        got = error.got if isinstance(error, InputError) else error
        raise InputError(problem, code="invalid-result", got=got, fix=fix) from None
    if not is_original:
        problem, expected = f"{file} was changed after the run", "the content that its checksum belongs to"
        raise InputError(problem, code="changed-file", expected=expected, fix=f"restore the file, or {fix}")
    fields = {name: value for name, value in vars(record).items() if name not in ("numbers", "seconds")}
    cost = {**record.cost, "seconds": record.seconds}
    return RunResult(**fields | {"scalar_metrics": record.numbers, "cost": cost, "is_checked": is_checked})


def _collect_values(measurement: Measurement, folder: Path) -> MetricValues:
    """Collect the values of a measurement; any other exception than a KiwiError becomes one that names the folder."""
    try:
        return measurement.collect(folder)
    except KiwiError:
        raise
    except (OSError, ValueError, TypeError, LookupError) as error:
        problem = f"the results of {measurement.name} in {folder} are missing or damaged"
        got, fix = f"{type(error).__name__}: {error}", f"remove {folder} and rerun the same command"
        raise InputError(problem, code="invalid-result", got=got, fix=fix) from error


def collect_results(steps: Sequence[Step]) -> dict[str, Any]:
    """Collect what the steps of a run wrote, as in result.json, to which the caller adds the fields about the run.

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
