"""What an arm costs before it runs: parameters and operations of a step, counted without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kiwi.ablation.study import Arm
from kiwi.errors import KiwiError
from kiwi.models.budget import Workload, count_budget, with_untrained_parts
from kiwi.models.config import KiwiConfig
from kiwi.spec import from_dict

EDITOR = "LitKiwi"


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


def editor_config(resolved: Mapping[str, Any]) -> KiwiConfig | None:
    """The editor that a stage trains; None if it trains something else."""
    model = resolved.get("model", {})
    if model.get("type") != EDITOR:
        return None
    config: KiwiConfig = from_dict(KiwiConfig, model["config"], "model.config")
    return config


def cost_of(arm: Arm) -> Cost | None:
    """Count an arm; None if it is not an editor, or if only its files tell the sizes."""
    resolved = list(arm.resolved.values())[-1]
    try:
        if (config := editor_config(resolved)) is None:
            return None
        config, data = with_untrained_parts(config), resolved.get("data", {})
        frames = [data_set.get("max_frames") or 81 for data_set in data.get("train") or []]
        budget = count_budget(config, Workload.of_training(config, frames, data.get("max_pixels")))
    except KiwiError:
        return None
    return Cost(
        parameters=budget.total_parameters,
        trainable=budget.total_trainable(resolved["model"].get("train_parts")),
        step_flops=budget.step_flops,
    )
