"""Wan base weights as a model folder: what training starts from, every other part at its initial values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kiwi.checkpoints.assemble import ImportSettings, Report, assemble
from kiwi.models.dit.base import read_wan_transformer
from kiwi.weights.files import State


def import_wan(source: str, origin: ImportSettings, folder: Path, report: Report, *, subfolder: str = "") -> None:
    """The transformer of a Wan model, original or diffusers names, as a model folder.

    The source embedding starts at zero, so that the first step of training sees the base model. There is a reference
    embedding too, at zero: training decides what becomes of it.

    Raises:
        CheckpointError: not a Wan transformer, or tensors that do not fit; see `assemble`.
    """
    state: State = {f"dit.{name}": tensor for name, tensor in read_wan_transformer(source, subfolder).items()}
    new = {"query.readout": "queries", "reference": "AppendReference"}
    assemble(state, replace(origin, changes={**new, **origin.changes}), folder, report)
