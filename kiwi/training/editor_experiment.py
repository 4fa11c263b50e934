"""The editor and the data of a `kiwi fit` experiment, for commands that use them without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kiwi.errors import InputError
from kiwi.experiment import get_section, read_experiment

if TYPE_CHECKING:
    from kiwi.models.config import KiwiConfig


class EditorExperiment(NamedTuple):
    """Configuration of an experiment that trains an editor."""

    config: KiwiConfig
    train_parts: Sequence[str]
    data: dict[str, Any]
    """Arguments of EditData: data sources, size limits, and the number of held-out samples."""
    seed: int


def read_editor_experiment(file: Path) -> EditorExperiment:
    """Read an experiment that trains an editor, including the experiments that it inherits from.

    Raises:
        InputError: the file cannot be read, does not train an editor, or has values of the wrong type.
    """
    return parse_editor_experiment(read_experiment(file), file)


def parse_editor_experiment(experiment: dict[str, Any], name: Path | str) -> EditorExperiment:
    """Parse a configuration that trains an editor.

    Args:
        experiment: configuration in short form, from `kiwi.experiment.read_experiment` or `kiwi.training.fit.resolve`.
        name: name of the configuration in error messages, such as that of its file.

    Raises:
        InputError: the configuration does not train an editor, or has values of the wrong type.
    """
    import kiwi.data.sandbox  # noqa: F401  (registers its data sources)
    from kiwi.data.sources import DataSource
    from kiwi.models.config import TRAINABLE, KiwiConfig
    from kiwi.spec import from_dict

    model, settings = (get_section(experiment, path, name) for path in ("model", "data"))
    if model.get("type") != "LitKiwi" or "config" not in model:
        problem, expected = f"{name} does not train an editor", "model.type: LitKiwi"
        raise InputError(problem, code="not-an-editor", got=model.get("type"), expected=expected)
    config: KiwiConfig = from_dict(KiwiConfig, model["config"], "model.config")
    parts = model.get("train_parts", list(TRAINABLE))
    if not isinstance(parts, list) or not set(parts) <= set(TRAINABLE):
        problem = f"model.train_parts of {name} has unknown parts"
        raise InputError(problem, code="unknown-part", got=parts, expected=f"some of {TRAINABLE}")
    data: dict[str, Any] = {key: settings[key] for key in ("root", "max_pixels", "holdout") if key in settings}
    for key, minimum in (("max_pixels", 1), ("holdout", 0)):
        if type(value := data.get(key, minimum)) is not int or value < minimum:
            problem = f"data.{key} of {name} must be a whole number of at least {minimum}"
            raise InputError(problem, code="out-of-range", got=repr(value))
    for key in ("train", "validation"):
        sources = settings.get(key) or []
        if not isinstance(sources, list):
            problem = f"data.{key} of {name} is not a list of data sources"
            raise InputError(problem, code="wrong-type", got=repr(sources))
        data[key] = [from_dict(DataSource, item, f"data.{key}[{i}]") for i, item in enumerate(sources)]
    return EditorExperiment(config, parts, data, experiment.get("seed_everything", 0))
