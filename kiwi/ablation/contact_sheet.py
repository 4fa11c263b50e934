"""The contact sheet: the same items of the sandbox, edited by every arm, to look at beside the numbers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from kiwi import console
from kiwi.ablation.runs import Run
from kiwi.ablation.study import Study
from kiwi.checkpoints.folder import from_pretrained
from kiwi.errors import InputError, KiwiError
from kiwi.evaluation.options import SandboxMeasureOptions
from kiwi.evaluation.sandbox_measure import SandboxMeasurement
from kiwi.evaluation.sandbox_scores import edit_pairs, edit_sheet, pair_editor
from kiwi.media.files import sha256, write_json
from kiwi.media.image import write_image
from kiwi.media.run_dir import read_record

log = logging.getLogger(__name__)

ITEMS = 7
"""One of each category."""


def draw_contact_sheet(study: Study, runs: Sequence[Run], out: Path) -> None:
    """Edit the first items with each arm's model of the first seed, unless the sheet shows these models already."""
    models = _models(study, runs)
    if not models or contact_sheet_is_current(study, runs, out):
        return
    options = _sandbox_options(study)
    assert options is not None
    pairs = [options.pair(index) for index in range(ITEMS)]
    edits = {}
    for label, folder in console.progress(list(models.items()), "contact sheet"):
        try:
            model, defaults = from_pretrained(folder)
        except KiwiError as problem:
            log.warning("%s is missing on the contact sheet: %s", label, problem)
            continue
        sampling = defaults.sampling if options.steps is None else defaults.sampling.replace(steps=options.steps)
        edits[label] = edit_pairs(pairs, pair_editor(model.eval(), sampling, options.noise))
    if edits:
        write_image(out, edit_sheet(pairs, edits))
        write_json(_record(out), _hashes(models))


def contact_sheet_is_current(study: Study, runs: Sequence[Run], out: Path) -> bool:
    """Whether the sheet shows the models that exist; true if there are none, or nothing of the sandbox is measured."""
    models = _models(study, runs)
    if not models:
        return True
    try:
        return out.is_file() and read_record(_record(out)) == _hashes(models)
    except InputError:
        return False


def _record(out: Path) -> Path:
    """Hashes of the models on the sheet."""
    return out.with_suffix(".json")


def _sandbox_options(study: Study) -> SandboxMeasureOptions | None:
    return next((sandbox.settings for sandbox in study.measurements if isinstance(sandbox, SandboxMeasurement)), None)


def _models(study: Study, runs: Sequence[Run]) -> dict[str, Path]:
    if _sandbox_options(study) is None:
        return {}
    done = [run for run in runs if run.seed == study.seeds[0] and run.state == "done" and run.model.is_dir()]
    return {run.arm.label: run.model for run in done}


def _hashes(models: dict[str, Path]) -> dict[str, str]:
    return {label: sha256(folder / "model.safetensors") for label, folder in models.items()}
