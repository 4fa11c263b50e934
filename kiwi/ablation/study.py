"""Studies: a YAML file of arms, seeds and measurements, checked completely before anything starts.

title: Effects of the components
stages: {edit: components/edit.yaml}      # experiments of `kiwi fit`, in order; paths relative to this file
seeds: [0, 1, 2]
options: {trainer.max_steps: 1500}         # of every run, including the base's
arms:                                      # the base is always the first arm
  - {model.config.source: NoSource}
  - {edit.model.optim.lr: 0.001}           # of one stage only
  - {skip: [stage1]}
grid: {model.config.query.video: [4, 8]}   # every combination is an arm
measure:
  sandbox: {items: 140, level: easy}       # options of `kiwi sandbox measure`
  bench: {openve: {data: sandbox}}         # options of `kiwi bench openve`
  validation: [val/loss]
  primary: sandbox inside                  # the metric that decides, fixed before anything runs; default: the first
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi.ablation.labels import arm_label, changes, folder_name
from kiwi.bench.measurement import BenchmarkMeasurement
from kiwi.errors import InputError, KiwiError, format_choices
from kiwi.evaluation.measurement import Measurement, Metric
from kiwi.evaluation.sandbox_measure import SandboxMeasurement
from kiwi.experiment import read_experiment
from kiwi.training import fit
from kiwi.training.fit import FitOptions
from kiwi.training.validation import ValidationMeasurement

MEASUREMENTS: tuple[type[Measurement], ...] = (SandboxMeasurement, BenchmarkMeasurement, ValidationMeasurement)
"""What `measure` of a study's file may ask for; tables have the metrics in this order."""

Resolve = Callable[[FitOptions], dict[str, Any]]
"""From options of `fit` to the complete configuration; raises KiwiError."""

FIELDS = ("title", "stages", "seeds", "options", "arms", "grid", "measure")
PROTECTED = ("seed_everything", "trainer.default_root_dir", "ckpt_path")
"""Options of `fit` that a study sets itself."""

RESERVED = re.compile(
    r"sandbox|bench-.*|model|trainer|data|checkpoint|export|previews|quality|log|optimizer|lr_scheduler"
)
"""Names that a stage cannot have: other folders of a run, and groups of options."""

SKIP, PRIMARY = "skip", "primary"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A variant of training.

    Args:
        label: how it differs from the base.
        options: options of `fit` by dotted path, for each stage that is trained.
        resolved: complete configuration of each of these stages.
    """

    label: str
    options: Mapping[str, Mapping[str, Any]]
    resolved: Mapping[str, Mapping[str, Any]]

    @property
    def folder(self) -> str:
        """Name of the folder of its runs."""
        return folder_name(self.label)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study with its arms resolved; the first arm is the base.

    Args:
        title: of tables.
        stages: experiment files by stage, in order of training.
        seeds: every arm is trained under each.
        arms: the base first.
        measure: `measure` of the study's file.
        measurements: the same, typed.
    """

    title: str
    stages: Mapping[str, Path]
    seeds: Sequence[int]
    arms: Sequence[Arm]
    measure: Mapping[str, Any]
    measurements: Sequence[Measurement]

    @property
    def metrics(self) -> list[Metric]:
        """All metrics, the primary one first."""
        metrics = [metric for measurement in self.measurements for metric in measurement.metrics()]
        return sorted(metrics, key=lambda metric: metric.name != self.measure.get(PRIMARY))


def read_study(file: Path, resolve: Resolve = fit.resolve) -> Study:
    """Read a study and resolve all of its arms.

    Raises:
        InputError: unknown fields, paths or names, with those that exist; invalid values; two arms that are the same.
    """
    content = read_experiment(file)
    _check_fields(content, FIELDS, file)
    stages = _read_stages(content, file)
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
        expected = "a list of integers from 0, such as [0, 1, 2]"
        raise InputError(f"seeds of {file} are invalid", code="invalid-seeds", got=seeds, expected=expected)
    if len(set(seeds)) < len(seeds):
        raise InputError(f"seeds of {file} has a seed twice", code="duplicate-seed", got=seeds)
    return Study(
        title=str(content.get("title", file.stem)),
        stages=stages,
        seeds=seeds,
        arms=_read_arms(content, file, stages, resolve),
        measure=(measure := _read_measure(content, file)),
        measurements=_read_measurements(measure, file),
    )


def fit_options(seed: int, experiment: Path, options: Mapping[str, Any], checkpoint: str | None = None) -> FitOptions:
    """Options of `fit` for one stage of a run."""
    return FitOptions(config=(experiment,), overrides={"seed_everything": seed, **options}, checkpoint=checkpoint)


def _read_stages(content: Mapping[str, Any], file: Path) -> dict[str, Path]:
    stages = {
        name: file.parent / str(path) for name, path in _mapping(content.get("stages"), f"stages of {file}").items()
    }
    if not stages:
        expected = "stages: {NAME: experiment.yaml}"
        raise InputError(f"{file} has no stages", code="missing-stages", expected=expected)
    for name in stages:
        if not re.fullmatch(r"[A-Za-z][\w-]{0,40}", name, re.ASCII) or RESERVED.fullmatch(name):
            expected = "letters, digits, - and _, and not a group of options of `kiwi fit`"
            raise InputError(f"{file}: {name!r} cannot name a stage", code="invalid-stage-name", expected=expected)
    return stages


def _read_arms(content: Mapping[str, Any], file: Path, stages: Mapping[str, Path], resolve: Resolve) -> list[Arm]:
    common = _mapping(content.get("options"), f"options of {file}")
    listed = content.get("arms") or []
    if not isinstance(listed, list) or not all(
        isinstance(changed, dict) and changed and all(isinstance(path, str) for path in changed) for changed in listed
    ):
        expected = "a list of mappings from dotted paths to values, without the base"
        raise InputError(f"arms of {file} are invalid", code="invalid-arms", got=listed, expected=expected)
    arms: list[Arm] = []
    for number, changed in enumerate([{}, *listed, *_grid(content, file)]):
        where = f"arm {number} of {file}" if number else f"the base of {file}"
        arm = _resolve_arm(changed, common, stages, resolve, arms[0] if arms else None, where)
        twin = next((index for index, earlier in enumerate(arms) if earlier.resolved == arm.resolved), None)
        if twin is not None and number > len(listed):
            continue  # a grid may contain the base, or an arm that is listed too
        if twin is not None:
            same = f"arm {twin}" if twin else "the base"
            raise InputError(f"{where} is the same as {same}", code="duplicate-arm", got=arm.label)
        if any(earlier.label == arm.label for earlier in arms):
            raise InputError(f"{where} has the label of another arm", code="ambiguous-label", got=arm.label)
        arms.append(arm)
    return arms


def _resolve_arm(
    changed: Mapping[str, Any], common: Mapping[str, Any], stages: Mapping[str, Path], resolve: Resolve,
    base: Arm | None, where: str,
) -> Arm:  # fmt: skip
    changed = dict(changed)
    skipped = changed.pop(SKIP, [])
    if (
        not isinstance(skipped, list)
        or not all(isinstance(stage, str) for stage in skipped)
        or not set(skipped) < set(stages)
        or len(set(skipped)) < len(skipped)
    ):
        expected = f"a list of some of {', '.join(stages)}, not all"
        raise InputError(f"{where} cannot skip these stages", code="invalid-skip", got=skipped, expected=expected)
    options: dict[str, dict[str, Any]] = {stage: {} for stage in stages if stage not in skipped}
    for path, value in itertools.chain(common.items(), changed.items()):
        start, _, rest = path.partition(".")
        for stage in options:
            if start not in stages:
                options[stage][path] = value
            elif start == stage:
                options[stage][rest] = value
    first = next(iter(options))
    resolved = {}
    for stage, values in options.items():
        if reserved := [path for path in values if path in PROTECTED or (path == "model.init" and stage != first)]:
            chained = reserved == ["model.init"]
            reason = "each stage starts from the one before it" if chained else "the study sets it for each run"
            raise InputError(
                f"{where}, stage {stage} cannot set {reserved[0]}", code="reserved-option", fix=f"remove it: {reason}"
            )
        try:
            resolved[stage] = resolve(fit_options(0, stages[stage], values))
        except InputError as problem:
            raise InputError(f"{where}, stage {stage}: {problem}", code=problem.code) from None
    differences = {} if base is None else {stage: changes(base.resolved[stage], resolved[stage]) for stage in resolved}
    return Arm(label=arm_label(differences, skipped), options=options, resolved=resolved)


def _grid(content: Mapping[str, Any], file: Path) -> Iterator[dict[str, Any]]:
    grid = _mapping(content.get("grid"), f"grid of {file}")
    for path, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(
                f"grid of {file} has no values for {path}", code="empty-grid", got=values, expected="a list"
            )
    if grid:
        for values in itertools.product(*grid.values()):
            yield dict(zip(grid, values, strict=True))


def _read_measure(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    measure = _mapping(content.get("measure"), f"measure of {file}")
    _check_fields(measure, (*(kind.section for kind in MEASUREMENTS), PRIMARY), f"measure of {file}")
    return {ValidationMeasurement.section: ["val/loss"], **measure}


def _read_measurements(measure: Mapping[str, Any], file: Path) -> list[Measurement]:
    measurements: list[Measurement] = []
    for kind in MEASUREMENTS:
        if kind.section in measure:
            try:
                measurements += kind.from_study(measure[kind.section])
            except KiwiError as problem:
                raise InputError(f"measure of {file}: {problem}", code=problem.code) from None
    names = [metric.name for measurement in measurements for metric in measurement.metrics()]
    if (primary := measure.get(PRIMARY)) is not None and primary not in names:
        raise InputError(
            f"primary in measure of {file} is not one of its metrics", code="unknown-metric", got=primary,
            expected=format_choices(names, primary),
        )  # fmt: skip
    return measurements


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict | None) or not all(isinstance(key, str) for key in value or {}):
        raise InputError(f"{where} is not a mapping with text keys", code="not-a-mapping", got=repr(value))
    return dict(value or {})


def _check_fields(content: Mapping[str, Any], known: Sequence[str], where: object) -> None:
    for name in content:
        if name not in known:
            raise InputError(
                f"{where} has an unknown field {name!r}", code="unknown-field", expected=format_choices(known, name)
            )
