"""Averages of the weights over training steps: what is exported and looked at, while the weights themselves train."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kiwi.errors import CheckpointError, SpecError
from kiwi.spec import Spec

Named = Iterable[tuple[str, nn.Parameter]]


class Average:
    """What is kept beside the weights of a module. This one keeps nothing: the weights are their own average."""

    def update(self, parameters: Named) -> None:
        """Take in the weights after an optimizer step."""

    @contextmanager
    def applied(self, parameters: Named) -> Iterator[None]:
        """Run a block with the average in the weights' place."""
        yield

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any], shapes: dict[str, torch.Size]) -> None:
        """Go on from a checkpoint.

        Args:
            state: as saved.
            shapes: of the weights that it must be an average of.

        Raises:
            CheckpointError: it is of another kind or of other weights.
        """
        if state:
            raise CheckpointError(
                "the checkpoint holds an average of the weights and this run keeps none",
                fix="resume with the configuration the run was started with (config.yaml in its folder)",
            )


@dataclass(frozen=True, kw_only=True)
class AveragingSpec(Spec, ABC):
    """The family of averages."""

    @abstractmethod
    def build(self) -> Average:
        """A new average, of nothing yet."""


@dataclass(frozen=True, kw_only=True)
class NoAveraging(AveragingSpec):
    """The weights as they are."""

    def build(self) -> Average:
        return Average()


@dataclass(frozen=True, kw_only=True)
class Ema(AveragingSpec):
    """Exponential moving average of what learns, in float32.

    Lightning's own callback averages a copy of the whole module, frozen MLLM and VAE included; this one keeps what
    learns alone.

    Args:
        decay: how much of the average stays at each step, in [0, 1); (1 + t) / (10 + t) while that is smaller, so that
            short runs are not held at their start.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise SpecError("the decay of an average lies in [0, 1)", got=self.decay)

    def build(self) -> Average:
        return EmaAverage(self.decay)


class EmaAverage(Average):
    """The average and how many steps it has taken in."""

    def __init__(self, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, parameters: Named) -> None:
        weights = {name: parameter.detach().float() for name, parameter in parameters}
        if not self.values:
            self.values = {name: weight.clone() for name, weight in weights.items()}
        values = [self.values[name].to(weight.device) for name, weight in weights.items()]
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(values, list(weights.values()), 1 - decay)
        self.values = dict(zip(weights, values, strict=True))
        self.updates += 1

    @contextmanager
    def applied(self, parameters: Named) -> Iterator[None]:
        mine = {name: parameter for name, parameter in parameters if name in self.values}
        kept = {name: parameter.detach().clone() for name, parameter in mine.items()}
        try:
            _fill(mine, self.values)
            yield
        finally:
            _fill(mine, kept)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict[str, Any], shapes: dict[str, torch.Size]) -> None:
        found = {name: value.shape for name, value in state.get("values", {}).items()}
        if not state or (found and found != shapes):
            raise CheckpointError(
                "the checkpoint's average of the weights is not of this model",
                got=f"{len(found)} tensors" if state else "no average",
                wanted=f"{len(shapes)} tensors, of what learns",
                fix="resume with the configuration the run was started with (config.yaml in its folder)",
            )
        self.updates, self.values = state["updates"], dict(state["values"])


@torch.no_grad()
def _fill(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
