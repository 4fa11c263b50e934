"""What an arm costs before it runs: parameters and operations of a step, counted without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kiwi.ablation.study import Arm
from kiwi.errors import KiwiError
from kiwi.models.budget import Workload, count_budget, with_untrained_parts
from kiwi.training.editor_experiment import EditorExperiment, parse_editor_experiment


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of an arm's last stage.

    Args:
        parameters, trainable: numbers of all parameters and of those that are trained.
        step_flops: of the DiT's forward pass for one sample of the longest clips, with one reference.
    """

    parameters: int
    trainable: int
    step_flops: int


def editor_of(resolved: Mapping[str, Any], where: str) -> EditorExperiment | None:
    """The editor that a stage trains, and its data; None if it trains something else."""
    is_editor = resolved.get("model", {}).get("type") == "LitKiwi"
    return parse_editor_experiment(dict(resolved), where) if is_editor else None


def cost_of(arm: Arm) -> Cost | None:
    """Count an arm; None if it is not an editor, or if its sizes are only known from files."""
    try:
        if (editor := editor_of(list(arm.resolved.values())[-1], arm.label)) is None:
            return None
        config = with_untrained_parts(editor.config)
        max_frames = [source.max_frames for source in editor.data["train"]]
        budget = count_budget(config, Workload.for_training(config, max_frames, editor.data.get("max_pixels")))
    except KiwiError:
        return None
    return Cost(
        parameters=budget.total_parameters,
        trainable=budget.total_trainable(editor.train_parts),
        step_flops=budget.step_flops,
    )
