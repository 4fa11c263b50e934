"""What an experiment of `kiwi fit` says, for commands that work with its editor and its data without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kiwi.errors import InputError

if TYPE_CHECKING:
    from kiwi.models.config import KiwiConfig


class EditorExperiment(NamedTuple):
    """An experiment that trains an editor."""

    config: KiwiConfig
    parts: Sequence[str]
    """Which parts learn."""
    data: dict[str, Any]
    """Arguments of EditData: what to train and validate on, and at which size."""
    seed: int


def read_editor(file: Path) -> EditorExperiment:
    """Read an experiment, with everything that its bases say.

    Raises:
        InputError: it cannot be read, trains no editor, or holds values of another type.
    """
    from kiwi.data.datamodule import data_sets_of
    from kiwi.experiment import read_experiment, section
    from kiwi.models.config import TRAINABLE, KiwiConfig
    from kiwi.spec import from_dict

    found = read_experiment(file)
    model, said = (section(found, path, file) for path in ("model", "data"))
    if model.get("type") != "LitKiwi" or "config" not in model:
        raise InputError(f"{file} trains no editor", got=model.get("type"), wanted="model.type: LitKiwi")
    config: KiwiConfig = from_dict(KiwiConfig, model["config"], "model.config")
    parts = model.get("train_parts", list(TRAINABLE))
    if not isinstance(parts, list) or not set(parts) <= set(TRAINABLE):
        raise InputError(f"train_parts of {file} names other things", got=parts, wanted=f"some of {TRAINABLE}")
    data: dict[str, Any] = {name: said[name] for name in ("root", "max_pixels", "holdout") if name in said}
    for name, least in (("max_pixels", 1), ("holdout", 0)):
        if type(value := data.get(name, least)) is not int or value < least:
            raise InputError(f"data.{name} of {file} is no whole number from {least} on", got=repr(value))
    for name in ("train", "validation"):
        data[name] = data_sets_of(said.get(name) or [], f"data.{name} of {file}")
    return EditorExperiment(config, parts, data, found.get("seed_everything", 0))
