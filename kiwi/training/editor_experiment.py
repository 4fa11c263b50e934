"""The editor and the data of an experiment of `kiwi fit`, for commands that use them without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kiwi.errors import InputError
from kiwi.experiment import get_section, read_experiment

if TYPE_CHECKING:
    from kiwi.models.config import KiwiConfig


class EditorExperiment(NamedTuple):
    """An experiment that trains an editor."""

    config: KiwiConfig
    train_parts: Sequence[str]
    """Parts that are trained."""
    data: dict[str, Any]
    """Arguments of EditData: training and validation data, and their size."""
    seed: int


def read_editor_experiment(file: Path) -> EditorExperiment:
    """Read an experiment that trains an editor, its bases included.

    Raises:
        InputError: it cannot be read, does not train an editor, or has values of the wrong type.
    """
    return parse_editor_experiment(read_experiment(file), file)


def parse_editor_experiment(experiment: dict[str, Any], file: Path | str) -> EditorExperiment:
    """The same from a configuration in short form.

    Args:
        experiment: as `kiwi.experiment.read_experiment` or `kiwi.training.fit.resolve` returns it.
        file: names the configuration in messages.

    Raises:
        InputError: as `read_editor_experiment`.
    """
    import kiwi.data.sandbox  # noqa: F401  (its data sources can be chosen by name)
    from kiwi.data.sources import DataSource
    from kiwi.models.config import TRAINABLE, KiwiConfig
    from kiwi.spec import from_dict

    model, settings = (get_section(experiment, path, file) for path in ("model", "data"))
    if model.get("type") != "LitKiwi" or "config" not in model:
        raise InputError(
            f"{file} does not train an editor",
            code="not-an-editor",
            got=model.get("type"),
            expected="model.type: LitKiwi",
        )
    config: KiwiConfig = from_dict(KiwiConfig, model["config"], "model.config")
    parts = model.get("train_parts", list(TRAINABLE))
    if not isinstance(parts, list) or not set(parts) <= set(TRAINABLE):
        raise InputError(
            f"train_parts of {file} has unknown parts", code="unknown-part", got=parts, expected=f"some of {TRAINABLE}"
        )
    data: dict[str, Any] = {name: settings[name] for name in ("root", "max_pixels", "holdout") if name in settings}
    for name, minimum in (("max_pixels", 1), ("holdout", 0)):
        if type(value := data.get(name, minimum)) is not int or value < minimum:
            problem = f"data.{name} of {file} must be a whole number of at least {minimum}"
            raise InputError(problem, code="out-of-range", got=repr(value))
    for name in ("train", "validation"):
        sources = settings.get(name) or []
        if not isinstance(sources, list):
            problem = f"data.{name} of {file} is not a list of data sources"
            raise InputError(problem, code="wrong-type", got=repr(sources))
        data[name] = [from_dict(DataSource, item, f"data.{name}[{i}]") for i, item in enumerate(sources)]
    return EditorExperiment(config, parts, data, experiment.get("seed_everything", 0))
