"""Studies: a YAML file of arms, seeds and measurements, checked whole before anything starts.

title: What the components are worth
stages: {edit: components/edit.yaml}      # experiments of `kiwi fit`, in order; paths relative to this file
seeds: [0, 1, 2]
options: {trainer.max_steps: 1500}         # of every run, the base's too
arms:                                      # the base stands first by itself
  - {model.config.source: NoSource}
  - {edit.model.optim.lr: 0.001}           # of one stage alone
  - {skip: [stage1]}
grid: {model.config.query.video: [4, 8]}   # every combination is an arm
measure:
  sandbox: {items: 140, level: easy}       # of `kiwi sandbox measure`, as all below are of their commands
  bench: {openve: {data: sandbox}}
  validation: [val/loss]
  primary: sandbox inside                  # what decides, said before anything runs; the first measure if left out
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kiwi.ablation.labels import changes, folder_name, label
from kiwi.errors import InputError, one_of
from kiwi.experiment import read_experiment
from kiwi.training.fit import FitOptions

Resolve = Callable[[FitOptions], dict[str, Any]]
"""From the options of `fit` to the complete configuration, in short form; raises KiwiError."""

FIELDS = ("title", "stages", "seeds", "options", "arms", "grid", "measure")
PROTECTED = ("seed_everything", "trainer.default_root_dir", "ckpt_path")
"""Options that a study sets itself."""

OURS = ("model", "out", "name", "help", "no-gallery", "videos", "part")
"""Options of measurements that a study sets itself, or that mean nothing in one."""

RESERVED = re.compile(
    r"sandbox|bench-.*|model|trainer|data|checkpoint|export|previews|quality|log|optimizer|lr_scheduler"
)
"""Names that a stage cannot have: of other folders of a run, and of groups of options."""

OF_SANDBOX = ("overall", "compliance", "consistency", "quality", "inside", "outside")
"""Numbers of an item that `kiwi sandbox measure` has."""

OF_BENCH = ("raw", "capped")
"""Numbers of an item that `kiwi bench` has."""

MEASURES = ("sandbox", "bench", "validation", "primary")
SKIP = "skip"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way of training.

    Args:
        label: how it differs from the base.
        options: of each stage that is trained, by dotted path of `kiwi fit`.
        resolved: configuration of each, as `kiwi fit` understands it.
    """

    label: str
    options: Mapping[str, Mapping[str, Any]]
    resolved: Mapping[str, Mapping[str, Any]]

    @property
    def folder(self) -> str:
        """Its name among the results."""
        return folder_name(self.label)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What is measured of a trained editor.

    Args:
        sandbox: options of `kiwi sandbox measure`; none to leave it out.
        bench: options of `kiwi bench` by suite.
        validation: numbers of the last validation.
        primary: the measure of the first table and of the figures; the first one if none is named.
    """

    sandbox: Mapping[str, Any] | None = None
    bench: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    validation: Sequence[str] = ("val/loss",)
    primary: str | None = None

    def order(self, measures: Sequence[str]) -> list[str]:
        """Measures that runs have, the primary one first."""
        return sorted(measures, key=lambda name: name != self.primary)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study, its arms resolved; the first is the base."""

    title: str
    stages: Mapping[str, Path]
    seeds: Sequence[int]
    arms: Sequence[Arm]
    measure: Measure


def read_study(file: Path, resolve: Resolve) -> Study:
    """Read a study and understand every arm of it.

    Raises:
        InputError: fields, paths or names that do not exist, with those that do; values that cannot be; two arms that
            are the same.
    """
    said = read_experiment(file)
    _require_known(said, FIELDS, file)
    stages = {
        str(name): file.parent / str(path) for name, path in _mapping(said.get("stages"), f"stages of {file}").items()
    }
    if not stages:
        raise InputError(f"{file} names no stages", wanted="stages: {NAME: experiment.yaml}")
    for name in stages:
        if not re.fullmatch(r"[A-Za-z][\w-]{0,40}", name, re.ASCII) or RESERVED.fullmatch(name):
            wanted = "letters, digits, - and _, and no group of options of `kiwi fit`"
            raise InputError(f"{file} has a stage that cannot be called {name!r}", wanted=wanted)
    seeds = said.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
        raise InputError(f"seeds of {file} are no whole numbers", got=seeds, wanted="a list such as [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"a seed of {file} is there twice", got=seeds)
    common = _mapping(said.get("options"), f"options of {file}")
    arms: list[Arm] = []
    listed = _listed(said, file)
    for number, changed in enumerate([{}, *listed, *_grid(said, file)]):
        where = f"arm {number} of {file}" if number else f"the base of {file}"
        arm = _arm(changed, common, stages, resolve, arms[0] if arms else None, where)
        twin = [index for index, other in enumerate(arms) if other.resolved == arm.resolved]
        if not twin and any(other.label == arm.label for other in arms):
            raise InputError(f"{where} cannot be told from another arm by its label", got=arm.label)
        if twin and number > len(listed):
            continue  # a grid may hold the base, or an arm that is listed too
        if twin:
            raise InputError(f"{where} is the same as {'the base' if twin == [0] else f'arm {twin[0]}'}", got=arm.label)
        arms.append(arm)
    title = said.get("title", file.stem)
    return Study(title=str(title), stages=stages, seeds=seeds, arms=arms, measure=_measure(said.get("measure"), file))


def options_of(seed: int, experiment: Path, options: Mapping[str, Any]) -> FitOptions:
    """The options of `fit` for a stage of an arm."""
    return FitOptions(config=(experiment,), overrides={"seed_everything": seed, **options})


def _arm(
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
        raise InputError(f"{where} skips other stages", got=skipped, wanted=f"some of {', '.join(stages)}, not all")
    options: dict[str, dict[str, Any]] = {stage: {} for stage in stages if stage not in skipped}
    for path, value in itertools.chain(common.items(), changed.items()):
        start, _, rest = path.partition(".")
        for stage in options:
            if start not in stages:
                options[stage][path] = value
            elif start == stage:
                options[stage][rest] = value
    first = next(iter(options))
    for stage, given in options.items():
        if taken := [path for path in given if path in PROTECTED or (path == "model.init" and stage != first)]:
            why = (
                "each stage starts from the one before it"
                if taken == ["model.init"]
                else "a study sets it for each run"
            )
            raise InputError(f"{where}, stage {stage}: {taken[0]} is not to be set", fix=f"leave it out: {why}")
    resolved = {}
    for stage, given in options.items():
        try:
            resolved[stage] = resolve(options_of(0, stages[stage], given))
        except InputError as problem:
            raise InputError(f"{where}, stage {stage}: {problem}") from None
    told = {} if base is None else {stage: changes(base.resolved[stage], resolved[stage]) for stage in resolved}
    return Arm(label=label(told, skipped), options=options, resolved=resolved)


def _listed(said: Mapping[str, Any], file: Path) -> list[dict[str, Any]]:
    listed = said.get("arms") or []
    if not isinstance(listed, list) or not all(
        isinstance(arm, dict) and arm and all(isinstance(path, str) for path in arm) for arm in listed
    ):
        wanted = "a list of mappings from dotted paths to values; the base is there by itself"
        raise InputError(f"arms of {file} cannot be read", got=listed, wanted=wanted)
    return listed


def _grid(said: Mapping[str, Any], file: Path) -> Iterator[dict[str, Any]]:
    grid = _mapping(said.get("grid"), f"grid of {file}")
    if empty := [path for path, values in grid.items() if not isinstance(values, list) or not values]:
        raise InputError(f"{empty[0]} in the grid of {file} has no values", got=grid[empty[0]], wanted="a list")
    if grid:
        for values in itertools.product(*grid.values()):
            yield dict(zip(grid, values, strict=True))


def _measure(said: Any, file: Path) -> Measure:
    where = f"measure of {file}"
    found = _mapping(said, where)
    _require_known(found, MEASURES, where)
    bench = {
        str(suite): _mapping(options, f"bench.{suite} in {where}")
        for suite, options in _mapping(found.get("bench"), f"bench in {where}").items()
    }
    sandbox = _mapping(found["sandbox"], f"sandbox in {where}") if "sandbox" in found else None
    for options in (sandbox or {}, *bench.values()):
        if taken := [name for name in options if name in OURS]:
            raise InputError(
                f"{taken[0]} in {where} is not to be set", fix="leave it out: a study sets it for each run"
            )
    validation = found.get("validation", ["val/loss"])
    if not isinstance(validation, list) or not all(isinstance(name, str) for name in validation):
        raise InputError(f"validation in {where} names no numbers", got=validation, wanted="a list such as [val/loss]")
    names = [*(f"sandbox {name}" for name in OF_SANDBOX if sandbox is not None), *validation]
    names += [f"{suite} {kind}" for suite in bench for kind in OF_BENCH]
    primary = found.get("primary")
    if primary is not None and primary not in names:
        raise InputError(f"primary in {where} is not measured", got=primary, wanted=one_of(names, primary))
    return Measure(sandbox=sandbox, bench=bench, validation=validation, primary=primary)


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict | None) or not all(isinstance(key, str) for key in value or {}):
        raise InputError(f"{what} is no mapping", got=repr(value))
    return dict(value or {})


def _require_known(said: Mapping[str, Any], known: Sequence[str], where: object) -> None:
    for name in said:
        if name not in known:
            raise InputError(f"{where} has an unknown field {name!r}", wanted=one_of(known, name))
