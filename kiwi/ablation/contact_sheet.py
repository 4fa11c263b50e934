"""The contact sheet of a study: the same sandbox items edited by every arm (variant of the editor), to look at."""

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
from kiwi.evaluation.sandbox_scores import draw_edit_sheet, edit_pairs, make_pair_editor
from kiwi.media.files import sha256, write_json
from kiwi.media.image import write_image
from kiwi.media.run_dir import read_record

log = logging.getLogger(__name__)

ITEMS = 7
"""Number of items on the sheet, one of each category."""


def draw_contact_sheet(study: Study, runs: Sequence[Run], out: Path) -> None:
    """Edit the first items with every arm's model of the first seed; hashes of the models are stored beside the sheet.

    A sheet that shows these models already is kept.
    """
    if is_contact_sheet_current(study, runs, out):
        return
    options, models = _find_sandbox_options(study), _finished_models(study, runs)
    assert options is not None  # else the sheet is current
    pairs = [options.pair(index) for index in range(ITEMS)]
    edits = {}
    for label, folder in console.progress(list(models.items()), "contact sheet"):
        try:
            model, defaults = from_pretrained(folder)
        except KiwiError as error:
            log.warning("%s is missing on the contact sheet: %s", label, error)
            continue
        sampling = defaults.sampling if options.steps is None else defaults.sampling.replace(steps=options.steps)
        edits[label] = edit_pairs(pairs, make_pair_editor(model.eval(), sampling, options.noise))
    if edits:
        write_image(out, draw_edit_sheet(pairs, edits))
        write_json(out.with_suffix(".json"), _hash_models(models))


def is_contact_sheet_current(study: Study, runs: Sequence[Run], out: Path) -> bool:
    """Whether the sheet shows all models of the first seed; true without models or sandbox measurements."""
    models = _finished_models(study, runs)
    if not models:
        return True
    try:
        return out.is_file() and read_record(out.with_suffix(".json")) == _hash_models(models)
    except InputError:
        return False


def _find_sandbox_options(study: Study) -> SandboxMeasureOptions | None:
    return next((sandbox.settings for sandbox in study.measurements if isinstance(sandbox, SandboxMeasurement)), None)


def _finished_models(study: Study, runs: Sequence[Run]) -> dict[str, Path]:
    if _find_sandbox_options(study) is None:
        return {}
    done = [run for run in runs if run.seed == study.seeds[0] and run.state == "done" and run.model.is_dir()]
    return {run.arm.label: run.model for run in done}


def _hash_models(models: dict[str, Path]) -> dict[str, str]:
    return {label: sha256(folder / "model.safetensors") for label, folder in models.items()}
