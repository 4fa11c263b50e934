"""Base class of the measurements: the evaluations that an ablation study makes of each trained model.

Each kind of measurement is a class in the package whose code it runs: the sandbox here, benchmarks in `kiwi.bench`,
validation losses in `kiwi.training`. `kiwi.ablation.study.MEASUREMENTS` lists all that a study's file may name.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, cast

from kiwi.errors import InputError, format_choices
from kiwi.options import Options
from kiwi.spec import Spec, from_dict

OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of a measurement: its name in tables, such as "sandbox inside", and which values are better."""

    name: str
    better: Literal["higher", "lower", "neither"] = "higher"


@dataclass(frozen=True, kw_only=True)
class MetricValues:
    """The values of a measurement's metrics.

    Args:
        items: values by metric and item; items that a metric does not apply to are absent.
        categories: category of each item.
        clusters: cluster of each item that depends on others, such as its source video; other items are absent.
        scalars: values of metrics of the whole run, such as a loss.
    """

    items: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    categories: Mapping[str, str] = field(default_factory=dict)
    clusters: Mapping[str, str] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Measurement(Spec, ABC):
    """Base class of all measurements: a command of kiwi that evaluates a model folder, with its options.

    `section` is the key under `measure:` in a study's file. `command` is the part of the command line after `python -m
    kiwi`; it is empty if training itself logs the metrics.
    """

    section: ClassVar[str]
    command: ClassVar[str] = ""

    @classmethod
    @abstractmethod
    def from_study(cls, settings: Any) -> Sequence[Self]:
        """Build the measurements that a section of a study's file describes; `settings` is its parsed YAML.

        Raises:
            KiwiError: an option is unknown, invalid or set by the study itself.
        """

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the folder that holds its results, unique within a study."""

    @abstractmethod
    def list_metrics(self) -> Sequence[Metric]:
        """List the metrics in the order of tables."""

    def check(self) -> None:
        """Raise a KiwiError for anything that would fail only after training, such as missing benchmark data."""

    def count_items(self) -> Mapping[str, int]:
        """Count the items of each category that the command will evaluate; empty if it evaluates none."""
        return {}

    def make_options(self, model: Path, out: Path) -> Options | None:
        """Make the options of the command that evaluates a model folder and writes to `out`; None without a command."""
        return None

    @classmethod
    def run(cls, options: Mapping[str, Any]) -> int:
        """Run the command with options as plain data (`to_dict`) and return its exit code."""
        raise NotImplementedError(f"{cls.__name__} has no command")

    @abstractmethod
    def collect(self, folder: Path) -> MetricValues:
        """Read the results that the command, or a training run, wrote into a folder.

        Raises:
            KiwiError: the results are missing or unreadable.
        """


def parse_options(
    options: type[OptionsT],
    settings: Any,
    section: str,
    *,
    fixed: Mapping[str, Any],
    forbidden: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> OptionsT:
    """Build a command's options from a mapping in a study's file, with names as on the command line or as in Python.

    Args:
        options: dataclass of the options.
        settings: values by name, such as `max-pixels: 1024`, `max_pixels: 1024` or `no-gallery: true`.
        section: name of the mapping in error messages.
        fixed: values of options that the caller sets and the file may not.
        forbidden: further options that the file may not set.
        defaults: defaults that differ from those of the dataclass.

    Raises:
        InputError: `settings` is not a mapping, or an option is unknown or may not be set in the file.
        SpecError: an option has a value of the wrong type.
    """
    if not isinstance(settings, dict | None):
        raise InputError(f"{section} is not a mapping", code="wrong-type", got=repr(settings))
    known, reserved = {field.name for field in fields(options)}, {*fixed, *forbidden}
    values = dict(defaults or {})
    for key, value in (settings or {}).items():
        name = str(key).replace("-", "_")
        if name not in known and name.removeprefix("no_") in known and isinstance(value, bool):
            name, value = name.removeprefix("no_"), not value
        if name in reserved:
            fix = "remove it; kiwi sets it for each run"
            raise InputError(f"{section} cannot set {key}", code="reserved-option", fix=fix)
        if name not in known:
            expected = format_choices(sorted(known - reserved), name)
            raise InputError(f"{section} has no option {key!r}", code="unknown-field", expected=expected)
        values[name] = value
    return cast(OptionsT, from_dict(options, values | dict(fixed), section))
