"""The contact sheet: the same items, edited by every arm, so that the numbers can be seen."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kiwi import console
from kiwi.ablation.runs import Run
from kiwi.ablation.study import Study
from kiwi.errors import KiwiError
from kiwi.media.files import sha256, write_json
from kiwi.media.image import write_image
from kiwi.media.run_dir import read_record
from kiwi.sandbox.pairs import make_pair

log = logging.getLogger(__name__)

SHOWN = 7
"""Items: one a category."""

DRAWN = ("frames", "height", "width", "categories", "level", "split")
"""Settings of the world."""


def contact(study: Study, runs: Sequence[Run], out: Path) -> None:
    """Draw the sheet from models that are there, of the first seed; nothing is drawn where the sandbox is not measured.

    A sheet of the same models is not drawn again.
    """
    if study.measure.sandbox is None:
        return
    there = [run for run in runs if run.seed == study.seeds[0] and run.state == "done" and _model(run).is_dir()]
    there = [run for run in there if (run.folder / "sandbox" / "settings.json").is_file()]
    if not there:
        return
    models = {run.arm.label: _model(run) for run in there}
    held = {label: sha256(model / "model.safetensors") for label, model in models.items()}
    record = out.with_suffix(".json")
    if out.is_file() and record.is_file() and record.read_text(encoding="utf-8") == _said(held):
        return
    from kiwi.editing.editor import KiwiEditor
    from kiwi.evaluation.sandbox_scores import edit_pairs, edit_sheet, pair_editor

    settings = _drawn(there[0])
    world = {name: settings[name] for name in DRAWN}
    pairs = [make_pair(settings["seed"], index, **world) for index in range(SHOWN)]
    made = {}
    for label, model in console.progress(list(models.items()), "contact sheet"):
        try:
            editor = KiwiEditor.from_pretrained(model)
        except KiwiError as problem:
            log.warning("%s is not in the contact sheet: %s", label, problem)
            continue
        made[label] = edit_pairs(
            pairs,
            pair_editor(editor.model, editor.defaults.sampling.replace(steps=settings["steps"]), settings["noise"]),
        )
    if made:
        write_image(out, edit_sheet(pairs, made))
        write_json(record, held)


def _said(held: Mapping[str, str]) -> str:
    return json.dumps(held, indent=2) + "\n"


def _model(run: Run) -> Path:
    return run.folder / list(run.arm.options)[-1] / "model"


def _drawn(run: Run) -> dict[str, Any]:
    """What the run was measured on, as `kiwi sandbox measure` wrote it."""
    return read_record(run.folder / "sandbox" / "settings.json")
