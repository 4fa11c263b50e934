"""Measurements of a trained editor: the interface that all kinds have.

A kind of measurement is one class. It names its metrics and whether higher values are better, checks its options
before anything is trained, runs a command of kiwi on a model folder, and reads back what that command wrote. The
classes stand beside what they run: the sandbox here, benchmarks in `kiwi.bench`, validation losses in `kiwi.training`;
`kiwi.ablation.study.MEASUREMENTS` lists those that a study's file may ask for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, cast

from kiwi.errors import InputError
from kiwi.options import Options
from kiwi.spec import Spec, from_dict

OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that a measurement yields.

    Args:
        name: as tables print it, such as "sandbox inside".
        better: whether higher or lower values are better, or neither by itself.
    """

    name: str
    better: Literal["higher", "lower", "neither"] = "higher"


@dataclass(frozen=True, kw_only=True)
class MetricValues:
    """The values that a measurement yields.

    Args:
        items: value by metric and item; items that a metric does not apply to are absent.
        categories: category of every item.
        clusters: what items share that are not independent, such as their source video; an item that is absent is a
            cluster of its own.
        scalars: values of the whole run, by metric.
    """

    items: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    categories: Mapping[str, str] = field(default_factory=dict)
    clusters: Mapping[str, str] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Measurement(Spec, ABC):
    """A kind of measurement with its options.

    `section` is its key under `measure:` in a study's file. `command` is what follows `python -m kiwi` to run it, empty
    where training itself logs the numbers.
    """

    section: ClassVar[str]
    command: ClassVar[str] = ""

    @classmethod
    @abstractmethod
    def from_study(cls, settings: Any) -> Sequence[Self]:
        """The measurements that a section of a study's file asks for.

        Args:
            settings: the section as YAML has it.

        Raises:
            KiwiError: settings that are unknown, of the wrong type or out of range, or that the caller decides.
        """

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the folder that holds its results, unique within a study."""

    @abstractmethod
    def metrics(self) -> Sequence[Metric]:
        """Its metrics, in the order of tables."""

    def check(self) -> None:
        """Raise a KiwiError for what would fail after hours of training, such as benchmark data that is missing."""

    def options_for(self, model: Path, out: Path) -> Options | None:
        """Options of its command for one model folder; None where there is no command.

        Args:
            model: folder of the model to measure.
            out: folder to write to.
        """
        return None

    @classmethod
    def run(cls, options: Mapping[str, Any]) -> int:
        """Run its command with options as plain data (`to_dict`). Returns the exit code."""
        raise NotImplementedError(f"{cls.__name__} has no command")

    @abstractmethod
    def collect(self, folder: Path) -> MetricValues:
        """Read what its command, or a training run, left in a folder.

        Raises:
            KiwiError: nothing is there, or it cannot be read.
        """


def typed_options(
    options: type[OptionsT],
    settings: Any,
    where: str,
    *,
    decided: Mapping[str, Any],
    refused: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> OptionsT:
    """Options of a command from a mapping in a file, spelled as on the command line or as in Python.

    Args:
        options: their dataclass.
        settings: values by name: `max-pixels: 1024`, `max_pixels: 1024`, `no-gallery: true`.
        where: names the mapping in messages.
        decided: options that the caller sets, which the file therefore may not.
        refused: further options that the file may not set because they mean nothing there.
        defaults: values of options that the file does not set, where they are not the dataclass's own.

    Raises:
        InputError: not a mapping, or an option that the file may not set.
        SpecError: unknown options, with those that exist, or values of the wrong type.
    """
    if not isinstance(settings, dict | None):
        raise InputError(f"{where} is not a mapping", code="not-a-mapping", got=repr(settings))
    known = {field.name for field in fields(options)}
    values = dict(defaults or {})
    for key, value in (settings or {}).items():
        name = str(key).replace("-", "_")
        if name not in known and name.removeprefix("no_") in known and isinstance(value, bool):
            name, value = name.removeprefix("no_"), not value
        if name in (*decided, *refused):
            raise InputError(
                f"{where} cannot set {key}", code="reserved-option", fix="remove it; it is set for each run"
            )
        values[name] = value
    return cast(OptionsT, from_dict(options, values | dict(decided), where))
