"""Studies: YAML files with stages, seeds, arms and measurements, which are checked completely before any run.

An *arm* is one variant of the configuration. The *base* is the unchanged configuration.
title: Effects of the components
stages: {edit: components/edit.yaml}      # experiments of `kiwi fit`, in order; paths relative to this file
seeds: [0, 1, 2]
options: {trainer.max_steps: 1500}         # for every run, including the base
arms:                                      # the base (no changes) is always the first arm
  - {model.config.source: NoSource}
  - {edit.model.optim.lr: 0.001}           # for one stage only
  - {skip: [stage1]}
grid: {model.config.query.video: [4, 8]}   # every combination is an arm
measure:
  sandbox: {items: 140, level: easy}       # options of `kiwi sandbox measure`
  bench: {openve: {data: sandbox}}         # options of `kiwi bench openve`
  validation: [val/loss]
  primary: sandbox inside                  # the decisive metric, chosen before any run; default: the first metric
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi.ablation.labels import WINDOWS_DEVICES, list_changed_values, make_arm_label, make_folder_name
from kiwi.bench.measurement import BenchmarkMeasurement
from kiwi.errors import InputError, KiwiError, format_choices
from kiwi.evaluation.measurement import Measurement, Metric
from kiwi.evaluation.sandbox_measure import SandboxMeasurement
from kiwi.experiment import read_experiment
from kiwi.models.budget import Workload, count_budget, with_untrained_parts
from kiwi.spec import Spec
from kiwi.training import fit
from kiwi.training.cli_arguments import find_import
from kiwi.training.editor_experiment import EditorExperiment, parse_editor_experiment
from kiwi.training.fit import FitOptions
from kiwi.training.run_log import ValidationMeasurement

MEASUREMENTS: tuple[type[Measurement], ...] = (SandboxMeasurement, BenchmarkMeasurement, ValidationMeasurement)
"""Kinds of measurements that a study can use; tables list their metrics in this order."""

Resolve = Callable[[FitOptions], dict[str, Any]]
"""Function that resolves options of `fit` to the complete configuration; raises KiwiError."""
STUDY_FIELDS = ("title", "stages", "seeds", "options", "arms", "grid", "measure")
RESERVED_OPTIONS = ("seed_everything", "trainer.default_root_dir", "ckpt_path", "config", "print_config", "help")
"""Options of `fit` that the study sets, so that arms cannot."""

RESERVED_STAGE_NAMES = re.compile(
    r"sandbox|bench-.*|model|trainer|data|checkpoint|export|previews|quality|log|optimizer|lr_scheduler|"
    + WINDOWS_DEVICES, re.IGNORECASE,
)  # fmt: skip
"""Names that a stage cannot have: folders of a run or reserved ones, and sections of the configuration."""

OPTION_PATH = r"\w[^\s.=]*(\.[^\s.=]+)*"
"""Regular expression of an option's dotted path."""
SKIP, PRIMARY = "skip", "primary"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One variant of the configuration of a study.

    Args:
        label: differences from the base as text.
        options: options of `fit` by dotted path, for each trained stage.
        resolved: complete configuration of each trained stage.
    """

    label: str
    options: Mapping[str, Mapping[str, Any]]
    resolved: Mapping[str, Mapping[str, Any]]

    @property
    def folder(self) -> str:
        """Name of the folder that contains its runs."""
        return make_folder_name(self.label)

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules outside kiwi that define specs of the configuration; child processes import them first.

        Raises:
            InputError: a spec is defined in the main script, which child processes cannot import.
        """
        modules = sorted(_find_modules(list(self.resolved.values())))
        if "__main__" in modules:
            message = f"the main script defines a spec of the arm {self.label!r}, so its runs cannot import it"
            raise InputError(message, code="missing-module", fix="move the spec into a module of its own")
        return tuple(modules)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study whose arms are resolved to complete configurations.

    Args:
        title: title of the tables.
        stages: experiment files by stage, in the order of training.
        seeds: seeds with which every arm is trained.
        arms: arms to compare; the first is the base.
        measure: section `measure` of the study's file.
        measurements: measurements of that section.
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
        metrics = [metric for measurement in self.measurements for metric in measurement.list_metrics()]
        return sorted(metrics, key=lambda metric: metric.name != self.measure.get(PRIMARY))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of the last stage of an arm.

    Args:
        parameters: number of parameters of the whole editor.
        trainable: number of trainable parameters.
        denoising_step_flops: floating-point operations of one forward pass of the DiT, for one of the longest clips
            with one reference image.
    """

    parameters: int
    trainable: int
    denoising_step_flops: int


def read_study(file: Path, resolve: Resolve = fit.check) -> Study:
    """Read the file of a study and resolve all of its arms.

    Raises:
        InputError: a field, path or name is unknown, a value is invalid, or two arms are equal.
    """
    content = read_experiment(file)
    _check_fields(content, STUDY_FIELDS, file)
    stages = _read_stages(content, file)
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
        expected = "a list of integers of at least 0, such as [0, 1, 2]"
        raise InputError(f"the seeds of {file} are invalid", code="invalid-seeds", got=seeds, expected=expected)
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{file} lists a seed twice", code="invalid-seeds", got=seeds)
    return Study(
        title=str(content.get("title", file.stem)),
        stages=stages,
        seeds=seeds,
        arms=_read_arms(content, file, stages, resolve),
        measure=(measure := _read_measure(content, file)),
        measurements=_read_measurements(measure, file),
    )


def make_fit_options(seed: int, file: Path, options: Mapping[str, Any], checkpoint: str | None = None) -> FitOptions:
    """Make the options of `fit` for one stage of a run from its experiment and the options of its arm."""
    return FitOptions(config=(file,), overrides={"seed_everything": seed, **options}, checkpoint=checkpoint)


def find_editor_experiment(resolved: Mapping[str, Any], name: str) -> EditorExperiment | None:
    """Return the editor that a stage trains and its data; None for another kind of model. `name` is used in errors."""
    is_editor = resolved.get("model", {}).get("type") == "LitKiwi"
    return parse_editor_experiment(dict(resolved), name) if is_editor else None


def count_cost(arm: Arm) -> Cost | None:
    """Count the cost of an arm; None if it trains no editor, or if its sizes are only known from missing files."""
    try:
        if (editor := find_editor_experiment(list(arm.resolved.values())[-1], arm.label)) is None:
            return None
        config = with_untrained_parts(editor.config)
        max_frames = [source.max_frames for source in editor.data["train"]]
        budget = count_budget(config, Workload.for_training(config, max_frames, editor.data.get("max_pixels")))
    except KiwiError:
        return None
    return Cost(
        parameters=budget.total_parameters,
        trainable=budget.total_trainable(editor.train_parts),
        denoising_step_flops=budget.denoising_step_flops,
    )


def _read_stages(content: Mapping[str, Any], file: Path) -> dict[str, Path]:
    paths = _read_mapping(content.get("stages"), f"stages of {file}")
    stages = {name: file.parent / str(path) for name, path in paths.items()}
    if not stages:
        expected = "stages: {NAME: experiment.yaml}"
        raise InputError(f"{file} has no stages", code="missing-field", expected=expected)
    for name in stages:
        is_unique = [stage.lower() for stage in stages].count(name.lower()) == 1
        is_name = re.fullmatch(r"[A-Za-z][\w-]{0,40}", name, re.ASCII) and not RESERVED_STAGE_NAMES.fullmatch(name)
        if not is_name or not is_unique:
            expected = "letters, digits, - and _, not a section such as model, and different in more than case"
            raise InputError(f"{file}: {name!r} cannot be a stage name", code="invalid-stage-name", expected=expected)
    return stages


def _read_arms(content: Mapping[str, Any], file: Path, stages: Mapping[str, Path], resolve: Resolve) -> list[Arm]:
    common = _read_mapping(content.get("options"), f"options of {file}")
    listed = content.get("arms") or []
    if not isinstance(listed, list) or not all(
        isinstance(changed, dict) and changed and all(isinstance(path, str) for path in changed) for changed in listed
    ):
        expected = "a list of mappings from dotted paths to values; do not list the base"
        raise InputError(f"the arms of {file} are invalid", code="wrong-type", got=listed, expected=expected)
    arms: list[Arm] = []
    for index, changed in enumerate([{}, *listed, *_expand_grid(content, file)]):
        arm_name = f"arm {index} of {file}" if index else f"the base of {file}"
        arm = _resolve_arm(changed, common, stages, resolve, arms[0] if arms else None, arm_name)
        duplicate = next((number for number, earlier in enumerate(arms) if earlier.resolved == arm.resolved), None)
        if duplicate is not None and index > len(listed):
            continue  # a grid may contain the base or a listed arm
        if duplicate is not None:
            earlier_name = f"arm {duplicate}" if duplicate else "the base"
            raise InputError(f"{arm_name} is identical to {earlier_name}", code="duplicate-arm", got=arm.label)
        if arm.folder.lower() in [earlier.folder.lower() for earlier in arms]:
            raise InputError(f"{arm_name} has the same label as another arm", code="duplicate-arm", got=arm.label)
        arms.append(arm)
    return arms


def _resolve_arm(
    changed: Mapping[str, Any], common: Mapping[str, Any], stages: Mapping[str, Path], resolve: Resolve,
    base: Arm | None, arm_name: str,
) -> Arm:  # fmt: skip
    changed = dict(changed)
    skipped = changed.pop(SKIP, [])
    if (
        not isinstance(skipped, list)
        or not all(isinstance(stage, str) for stage in skipped)
        or not set(skipped) < set(stages)
        or len(set(skipped)) < len(skipped)
    ):
        expected = f"a list of some but not all of {', '.join(stages)}"
        raise InputError(f"{arm_name} cannot skip these stages", code="invalid-skip", got=skipped, expected=expected)
    options: dict[str, dict[str, Any]] = {stage: {} for stage in stages if stage not in skipped}
    for path, value in itertools.chain(common.items(), changed.items()):
        prefix, _, rest = path.partition(".")
        if not re.fullmatch(OPTION_PATH, rest if prefix in stages else path):
            problem, expected = f"{arm_name} has no option path in {path!r}", _describe_paths(stages)
            raise InputError(problem, code="invalid-option", got=f"{path}: {value}", expected=expected)
        for stage in options:
            if prefix not in stages:
                options[stage][path] = value
            elif prefix == stage:
                options[stage][rest] = value
    first = next(iter(options))
    resolved = {}
    for stage, values in options.items():
        reserved_options = RESERVED_OPTIONS if stage == first else (*RESERVED_OPTIONS, "model.init")
        given = [path for option, value in values.items() for path in _list_paths(option, value)]
        if reserved := [path for path in given if path in reserved_options or path.endswith(".help")]:
            is_init = reserved == ["model.init"]
            reason = "each stage starts from the previous one" if is_init else "the study sets it for each run"
            problem = f"{arm_name}, stage {stage} cannot set {reserved[0]}: {reason}"
            raise InputError(problem, code="reserved-option", fix="remove it")
        if imported := next(filter(None, itertools.starmap(find_import, values.items())), None):
            problem = f"{arm_name}, stage {stage} names a class by its import path, which a study may not"
            fix = "import a spec's module first and give its name; name other classes in the experiment of a stage"
            raise InputError(problem, code="import-path", got=imported, fix=fix)
        try:
            resolved[stage] = resolve(make_fit_options(0, stages[stage], values))
        except KiwiError as error:
            raise _explain(error, f"{arm_name}, stage {stage}", stages, stage) from None
    before = base.resolved if base else resolved
    changes = {stage: list_changed_values(before[stage], values) for stage, values in resolved.items()}
    return Arm(label=make_arm_label(changes, skipped), options=options, resolved=resolved)


def _list_paths(path: str, value: Any) -> Iterator[str]:
    """List the dotted path of an option and those of the options in its value, without Lightning's `init_args`."""
    yield path.replace(".init_args", "")
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield from _list_paths(f"{path}.{name}", inner)


def _explain(error: KiwiError, place: str, stages: Mapping[str, Path], stage: str) -> InputError:
    """The error of a stage's options in terms of the study, in which options have no command line."""
    expected, fix = error.expected, error.fix
    if error.code == "missing-option":
        fix = f"set it in {stages[stage]}, or in the options or in an arm of the study"
    elif error.code == "unknown-field" and expected is None:
        expected = _describe_paths(stages)
    return InputError(f"{place}: {error.problem}", code=error.code, got=error.got, expected=expected, fix=fix)


def _describe_paths(stages: Mapping[str, Path]) -> str:
    return f"model.optim.lr, for example, or STAGE.model.optim.lr for one stage only (stages: {', '.join(stages)})"


def _expand_grid(content: Mapping[str, Any], file: Path) -> Iterator[dict[str, Any]]:
    grid = _read_mapping(content.get("grid"), f"grid of {file}")
    for path, values in grid.items():
        if not isinstance(values, list) or not values:
            problem = f"the grid of {file} has no values for {path}"
            raise InputError(problem, code="empty-grid", got=values, expected="a list")
    if grid:
        for values in itertools.product(*grid.values()):
            yield dict(zip(grid, values, strict=True))


def _read_measure(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    measure = _read_mapping(content.get("measure"), f"measure of {file}")
    _check_fields(measure, (*(measurement.section for measurement in MEASUREMENTS), PRIMARY), f"measure of {file}")
    return {ValidationMeasurement.section: ["val/loss"], **measure}


def _read_measurements(measure: Mapping[str, Any], file: Path) -> list[Measurement]:
    measurements: list[Measurement] = []
    for measurement_class in MEASUREMENTS:
        if measurement_class.section in measure:
            try:
                measurements += measurement_class.from_study(measure[measurement_class.section])
            except KiwiError as error:
                raise InputError(f"measure of {file}: {error}", code=error.code) from None
    names = [metric.name for measurement in measurements for metric in measurement.list_metrics()]
    if (primary := measure.get(PRIMARY)) is not None and primary not in names:
        problem, expected = f"the primary metric of {file} is not one of its metrics", format_choices(names, primary)
        raise InputError(problem, code="unknown-metric", got=primary, expected=expected)
    return measurements


def _find_modules(value: Any) -> set[str]:
    """Find the modules outside kiwi that define specs named in a resolved configuration."""
    if not isinstance(value, dict | list):
        return set()
    modules = set().union(*map(_find_modules, value.values() if isinstance(value, dict) else value))
    name = value.get("class_path", value.get("type")) if isinstance(value, dict) else None
    spec = Spec._registry.get(str(name).rpartition(".")[2])
    return modules if spec is None or spec.__module__.startswith("kiwi.") else modules | {spec.__module__}


def _read_mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict | None) or not all(isinstance(key, str) for key in value or {}):
        raise InputError(f"{name} is not a mapping with text keys", code="wrong-type", got=repr(value))
    return dict(value or {})


def _check_fields(content: Mapping[str, Any], known: Sequence[str], name: object) -> None:
    for field in content:
        if field not in known:
            expected = format_choices(known, field)
            raise InputError(f"{name} has an unknown field {field!r}", code="unknown-field", expected=expected)
