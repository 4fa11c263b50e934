"""The cost of an arm: parameters and operations per step, counted from the configuration without loading weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kiwi.ablation.study import Arm
from kiwi.errors import KiwiError
from kiwi.models.budget import Workload, count_budget, with_untrained_parts
from kiwi.training.editor_experiment import EditorExperiment, parse_editor_experiment


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of the last stage of an arm.

    Args:
        parameters: number of parameters of the whole editor.
        trainable: number of trainable parameters.
        denoising_step_flops: floating-point operations of one forward pass of the DiT, for one of the longest clips
            with one reference image.
    """

    parameters: int
    trainable: int
    denoising_step_flops: int


def find_editor_experiment(resolved: Mapping[str, Any], stage: str) -> EditorExperiment | None:
    """Return the editor that a stage trains and its data; None if the stage trains another kind of model."""
    is_editor = resolved.get("model", {}).get("type") == "LitKiwi"
    return parse_editor_experiment(dict(resolved), stage) if is_editor else None


def count_cost(arm: Arm) -> Cost | None:
    """Count the cost of an arm; None if it trains no editor, or if its sizes are only known from missing files."""
    try:
        if (editor := find_editor_experiment(list(arm.resolved.values())[-1], arm.label)) is None:
            return None
        config = with_untrained_parts(editor.config)
        max_frames = [source.max_frames for source in editor.data["train"]]
        budget = count_budget(config, Workload.for_training(config, max_frames, editor.data.get("max_pixels")))
    except KiwiError:
        return None
    return Cost(
        parameters=budget.total_parameters,
        trainable=budget.total_trainable(editor.train_parts),
        denoising_step_flops=budget.denoising_step_flops,
    )
