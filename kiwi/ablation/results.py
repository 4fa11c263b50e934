"""What a run found, in one record: numbers of items, numbers of the run, learning curves and cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from statistics import median
from typing import Any

from kiwi.ablation.study import OF_SANDBOX
from kiwi.errors import InputError
from kiwi.media.run_dir import read_record
from kiwi.training.run_log import FILE, read_log

CURVES = ("loss", "val/loss")
GAUGES = ("gamma_at_", "val/loss_at_")
"""Numbers by noise level, sigma behind the prefix, whose last value is kept."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Of a finished run.

    Args:
        label, seed: which arm's, and under which seed.
        items: numbers of items, by what they are called, such as "sandbox overall".
        categories: of the items.
        clusters: the source video of an item, where several share one.
        numbers: of the last validation.
        curves: (step, value) by name, stages after one another.
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


def read_result(file: Path) -> Result:
    """Raises InputError for a file that is no result."""
    fix = "remove it, and the run is measured again"
    try:
        said = read_record(file)
        said.pop("fingerprint", None)
        cost = {**said.pop("cost"), "seconds": float(said.pop("seconds"))}
        found = Result(**said, cost=cost)
        numbers = [found.numbers, *found.items.values()]
        if not all(isfinite(value) for one in numbers for value in one.values()) or not all(found.items.values()):
            raise ValueError("numbers that are none, or no items")
        if not all(name in found.categories for of in found.items.values() for name in of):
            raise ValueError("items without a category")
    except InputError as problem:
        raise InputError(f"{file} cannot be read", got=problem.got, fix=fix) from None
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise InputError(f"{file} is no result of a run", got=problem, fix=fix) from None
    return found


def collect(folder: Path, commands: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Gather what the commands of a run left; `Result`'s fields but for label and seed.

    Raises:
        InputError: nothing was measured, or what was cannot be read.
    """
    items: dict[str, dict[str, float]] = {}
    categories: dict[str, str] = {}
    clusters: dict[str, str] = {}
    if (measured := folder / "sandbox" / "items.jsonl").is_file():
        _sandbox(measured, items, categories)
    for bench in sorted(folder.glob("bench-*")):
        _bench(bench, items, categories, clusters)
    stages = [folder / stage for stage in stages_of(commands)]
    logs = [read_log(stage) for stage in stages if (stage / FILE).is_file()]
    last = {name: value for name, value in (_last(logs[-1]) if logs else {}).items() if isfinite(value)}
    speeds = [one["samples_per_second"] for log in logs for one in log.values() if "samples_per_second" in one]
    memory = [one["memory_gib"] for log in logs for one in log.values() if "memory_gib" in one]
    return {
        "items": items,
        "categories": categories,
        "clusters": clusters,
        "numbers": {name: value for name, value in last.items() if name.startswith("val/")},
        "curves": {name: _curve(logs, name) for name in CURVES},
        "by_sigma": {
            prefix: {name.removeprefix(prefix): value for name, value in last.items() if name.startswith(prefix)}
            for prefix in GAUGES
        },
        "cost": {
            "steps": float(sum(max(log, default=0) for log in logs)),
            **({"samples_per_second": median(speeds)} if speeds else {}),
            **({"memory_gib": max(memory)} if memory else {}),
        },
    }


def _sandbox(file: Path, items: dict[str, dict[str, float]], categories: dict[str, str]) -> None:
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue  # cut short by a kill, and measured again
        if said.get("what") == "as asked":
            key = f"sandbox/{said['id']}"
            categories[key] = said["category"]
            for name in OF_SANDBOX:
                if said[name] is not None:
                    items.setdefault(f"sandbox {name}", {})[key] = float(said[name])


def _bench(
    folder: Path, items: dict[str, dict[str, float]], categories: dict[str, str], clusters: dict[str, str]
) -> None:
    from kiwi.bench.run_folder import read_run
    from kiwi.bench.scoring import KINDS

    run = read_run(folder)
    for score in run.scored:
        key = f"{run.identity.name}/{score.item.id}"
        categories[key], clusters[key] = score.item.category, score.item.source.name
        for kind in KINDS:
            items.setdefault(f"{run.identity.name} {kind}", {})[key] = score.mean(kind)


def stages_of(commands: Sequence[Sequence[str]]) -> list[str]:
    """Names of the folders that `fit` wrote into."""
    roots = [word for one in commands if one[0] == "fit" for word in one if word.startswith(_ROOT)]
    return [Path(root.removeprefix(_ROOT)).name for root in roots]


_ROOT = "--trainer.default_root_dir="


def _last(log: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """The last value of each number."""
    found: dict[str, float] = {}
    for step in sorted(log):
        found |= log[step]
    return found


def _curve(logs: Sequence[Mapping[int, Mapping[str, float]]], name: str) -> list[list[float]]:
    found, before = [], 0
    for log in logs:
        found += [[before + step, log[step][name]] for step in sorted(log) if isfinite(log[step].get(name, inf))]
        before += max(log, default=0)
    return found
