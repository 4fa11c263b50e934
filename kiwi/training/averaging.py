"""Averages of the weights over optimizer steps. Validation, previews and exports use the averaged weights."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kiwi.errors import CheckpointError, SpecError
from kiwi.spec import Spec

NamedParameters = Iterable[tuple[str, nn.Parameter]]

RESUME_FIX = "resume with the configuration that the run was started with (config.yaml in its folder)"


class Average:
    """An average of a module's weights. This base class keeps none: `applied` uses the current weights."""

    def update(self, parameters: NamedParameters) -> None:
        """Update the average with the weights after an optimizer step."""

    @contextmanager
    def applied(self, parameters: NamedParameters) -> Iterator[None]:
        """Run a block with the average in place of the weights."""
        yield

    def state_dict(self) -> dict[str, Any]:
        """The state of the average for a checkpoint, as plain data and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any], shapes: dict[str, torch.Size]) -> None:
        """Restore the average from a checkpoint's `state`, which is empty if it has none.

        Args:
            shapes: shapes of the trainable parameters.

        Raises:
            CheckpointError: the saved average is of a different kind or of different parameters.
        """
        if state:
            problem = "the checkpoint has an average of the weights, but model.averaging is NoAveraging"
            raise CheckpointError(problem, code="mismatched-average", fix=RESUME_FIX)


@dataclass(frozen=True, kw_only=True)
class AveragingSpec(Spec, ABC):
    """Base class of all averaging specs."""

    @abstractmethod
    def build(self) -> Average:
        """Build an average without any updates."""


@dataclass(frozen=True, kw_only=True)
class NoAveraging(AveragingSpec):
    """No average: validation, previews and exports use the current weights."""

    def build(self) -> Average:
        return Average()


@dataclass(frozen=True, kw_only=True)
class Ema(AveragingSpec):
    """Exponential moving average of the trainable parameters, in float32.

    Lightning's EMA callback is not used: it averages a copy of the whole module, including the frozen MLLM and VAE.

    Args:
        decay: decay per optimizer step, in [0, 1). At step t, (1 + t) / (10 + t) is used while that is smaller, so that
            the average of a short run does not stay close to the initial weights.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise SpecError("Ema.decay must be in [0, 1)", code="out-of-range", got=self.decay)

    def build(self) -> Average:
        return EmaAverage(self.decay)


class EmaAverage(Average):
    """Exponential moving average in float32, with the number of its updates."""

    def __init__(self, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, parameters: NamedParameters) -> None:
        weights = {name: parameter.detach().float() for name, parameter in parameters}
        if not self.values:
            self.values = {name: weight.clone() for name, weight in weights.items()}
        values = [self.values[name].to(weight.device) for name, weight in weights.items()]
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(values, list(weights.values()), 1 - decay)
        self.values = dict(zip(weights, values, strict=True))
        self.updates += 1

    @contextmanager
    def applied(self, parameters: NamedParameters) -> Iterator[None]:
        averaged = {name: parameter for name, parameter in parameters if name in self.values}
        weights = {name: parameter.detach().clone() for name, parameter in averaged.items()}
        try:
            _copy_into_parameters(self.values, averaged)
            yield
        finally:
            _copy_into_parameters(weights, averaged)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict[str, Any], shapes: dict[str, torch.Size]) -> None:
        saved = {name: value.shape for name, value in state.get("values", {}).items()}
        if not state or (saved and saved != shapes):
            problem, got = "the checkpoint's average does not fit this model", f"{len(saved)} tensors"
            expected = f"{len(shapes)} tensors, one for each trainable parameter"
            raise CheckpointError(problem, code="mismatched-average", got=got, expected=expected, fix=RESUME_FIX)
        self.updates, self.values = state["updates"], dict(state["values"])


@torch.no_grad()
def _copy_into_parameters(values: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
