"""Strict loading: every tensor or none, and a report of every name that does not match."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kiwi.errors import CheckpointError
from kiwi.weights.files import Shapes

MAX_LISTED = 10
"""Names of one kind that a message lists."""

FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Types that weights may be saved in."""


@dataclass(frozen=True)
class Mismatch:
    """The differences between expected and actual tensors, as names; false if there are none."""

    num_expected: int
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    def __str__(self) -> str:
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "with the wrong shape": self.mismatched}
        return "; ".join(f"{len(names)} {kind} ({_shorten(names)})" for kind, names in kinds.items() if names)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)

    def raise_if_any(self, source: str) -> None:
        """Raise CheckpointError with every difference, if there is one; `source` says where the weights come from."""
        if self:
            raise CheckpointError(
                f"the weights of {source} do not match the model",
                code="mismatched-weights",
                got=self,
                expected=f"{self.num_expected} tensors, all of them and no others",
                fix="build the model with the configuration that the weights were saved with (config.json beside them)",
            )


def compare_shapes(expected: Shapes, actual: Shapes) -> Mismatch:
    """Compare names and shapes."""
    shared = sorted(expected.keys() & actual.keys())
    return Mismatch(
        num_expected=len(expected),
        missing=sorted(expected.keys() - actual.keys()),
        unexpected=sorted(actual.keys() - expected.keys()),
        mismatched=[
            f"{name} is {actual[name]}, not {expected[name]}" for name in shared if actual[name] != expected[name]
        ],
    )


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """Names and shapes of tensors."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def require_finite_floats(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors that a model cannot compute with.

    Raises:
        CheckpointError: naming those that are not float64, float32, float16 or bfloat16, or not finite.
    """
    wrong_types = [
        f"{name} is {tensor.dtype}" for name, tensor in sorted(state.items()) if tensor.dtype not in FLOAT_DTYPES
    ]
    if wrong_types:
        raise CheckpointError(
            f"{source} holds tensors of an unsupported type",
            code="unsupported-dtype",
            got=_shorten(wrong_types).replace("torch.", ""),
            expected=", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES),
            fix="convert a copy that was not quantised",
        )
    # Checked as float32, the widest type that models are loaded in.
    if wrong := [name for name, tensor in sorted(state.items()) if not torch.isfinite(tensor.float()).all()]:
        raise CheckpointError(
            f"{source} holds NaN or infinite numbers",
            code="not-finite",
            got=_shorten(wrong),
            fix="copy the file again",
        )


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str, *, assign: bool = False) -> None:
    """Load every tensor of the module, or none; `requires_grad` of its parameters does not change.

    Args:
        module: the target.
        state: tensors by name.
        source: where the weights come from, for the error message.
        assign: use the tensors themselves, dtype included, instead of copying into the module's (which may then be on
            the meta device).

    Raises:
        CheckpointError: with every missing, unexpected and mismatched name (the first ten of each kind).
    """
    compare_shapes(shapes_of(module.state_dict()), shapes_of(state)).raise_if_any(source)
    load_preserving_requires_grad(module, state, assign=assign)


def load_preserving_requires_grad(module: nn.Module, state: Mapping[str, Tensor], *, assign: bool) -> None:
    """Load tensors whose shapes were compared before, perhaps not all of the module's; `requires_grad` stays."""
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    module.load_state_dict(state, strict=False, assign=assign)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trainable)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """A hash that distinguishes sets of weights without reading all values.

    It covers every tensor's name, shape and 64 evenly spaced values, so a model that was trained further has another
    fingerprint. It guards against mistakes, not against forgery.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        flat = state[name].detach().reshape(-1)
        indices = torch.linspace(0, max(0, flat.numel() - 1), min(64, flat.numel()), dtype=torch.float64).long()
        values = flat[indices.to(flat.device)].to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes()
        digest.update(f"{name} {tuple(state[name].shape)} ".encode() + values)
    return digest.hexdigest()


def _shorten(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")
