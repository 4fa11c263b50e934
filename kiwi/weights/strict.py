"""Strict loading: every tensor or none, and a report of every name that does not fit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kiwi.errors import CheckpointError
from kiwi.weights.files import Shapes

SHOWN = 10
"""Names of one kind that a message lists."""

USABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Types that weights may be saved in."""


@dataclass(frozen=True)
class Mismatch:
    """How the names and shapes found differ from those wanted; empty lists when they do not."""

    num_expected: int
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    def __str__(self) -> str:
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.mismatched}
        return "; ".join(f"{len(names)} {kind} ({_listed(names)})" for kind, names in kinds.items() if names)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)

    def raise_if_any(self, what: str) -> None:
        """Raise CheckpointError with every kind of difference, if there is any."""
        if self:
            raise CheckpointError(
                f"the weights of {what} do not fit the model",
                got=self,
                wanted=f"{self.num_expected} tensors, all of them and no others",
                fix="build the model with the configuration that the weights were saved with (config.json beside them)",
            )


def compare_shapes(wanted: Shapes, found: Shapes) -> Mismatch:
    """Hold the names and shapes found against those wanted."""
    both = sorted(wanted.keys() & found.keys())
    return Mismatch(
        num_expected=len(wanted),
        missing=sorted(wanted.keys() - found.keys()),
        unexpected=sorted(found.keys() - wanted.keys()),
        mismatched=[f"{name} is {found[name]}, not {wanted[name]}" for name in both if found[name] != wanted[name]],
    )


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """Names and shapes of tensors."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def require_finite_floats(state: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors that no model can calculate with.

    Raises:
        CheckpointError: naming those that are not float64, float32, float16 or bfloat16, or not finite.
    """
    types = [f"{name} is {tensor.dtype}" for name, tensor in sorted(state.items()) if tensor.dtype not in USABLE]
    if types:
        raise CheckpointError(
            f"{what} holds tensors of a type that cannot be used",
            got=_listed(types).replace("torch.", ""),
            wanted=", ".join(str(dtype).removeprefix("torch.") for dtype in USABLE),
            fix="convert a copy that was not quantised",
        )
    # As float32, which is the widest type that models are kept in.
    if wrong := [name for name, tensor in sorted(state.items()) if not torch.isfinite(tensor.float()).all()]:
        raise CheckpointError(f"{what} holds NaN or infinite numbers", got=_listed(wrong), fix="copy the file again")


def load_strict(module: nn.Module, state: Mapping[str, Tensor], what: str, *, assign: bool = False) -> None:
    """Load every tensor of the module, or none.

    Args:
        module: the target.
        state: name to tensor.
        what: where the weights come from, for the message.
        assign: take the tensors themselves, type and all, instead of copying into the module's (which may then be on
            the meta device).

    Raises:
        CheckpointError: with every missing, unexpected and misshapen name (the first ten of each kind).
    """
    compare_shapes(shapes_of(module.state_dict()), shapes_of(state)).raise_if_any(what)
    trained = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    module.load_state_dict(dict(state), assign=assign)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trained[name])


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """A hash that tells one set of weights from another without reading all of it.

    Over every tensor's name and shape and 64 of its values, evenly spaced: a model that was trained further has
    another one. It guards against mistakes, not against forgery.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        flat = state[name].detach().reshape(-1)
        at = torch.linspace(0, max(0, flat.numel() - 1), min(64, flat.numel()), dtype=torch.float64).long()
        values = flat[at.to(flat.device)].to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes()
        digest.update(f"{name} {tuple(state[name].shape)} ".encode() + values)
    return digest.hexdigest()


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
