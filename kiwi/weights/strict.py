"""Strict loading: load all tensors or none, and report every name that does not match."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kiwi.errors import CheckpointError
from kiwi.weights.files import Shapes, require_float_dtypes

MAX_LISTED = 10
"""Maximum number of names of one kind in a message."""


@dataclass(frozen=True)
class Mismatch:
    """Differences between the expected tensors and the actual ones."""

    missing: list[str]
    unexpected: list[str]
    wrong_shapes: list[str]

    def __str__(self) -> str:
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "with the wrong shape": self.wrong_shapes}
        return "; ".join(f"{len(names)} {kind} ({_join_first(names)})" for kind, names in kinds.items() if names)

    def raise_if_any(self, source: str) -> None:
        """Raise a CheckpointError that lists the differences, if any; `source` says where the weights come from."""
        if differences := str(self):
            raise CheckpointError(
                f"the weights of {source} do not match the model",
                code="mismatched-weights",
                got=differences,
                fix="build the model with the configuration of the saved weights (the config.json beside them)",
            )


def compare_shapes(expected: Shapes, actual: Shapes) -> Mismatch:
    """Compare the names and shapes of expected and actual tensors."""
    shared = sorted(expected.keys() & actual.keys())
    return Mismatch(
        missing=sorted(expected.keys() - actual.keys()),
        unexpected=sorted(actual.keys() - expected.keys()),
        wrong_shapes=[f"{n} is {actual[n]}, not {expected[n]}" for n in shared if actual[n] != expected[n]],
    )


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """Return the shape of each tensor, by name."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def require_finite_floats(state: Mapping[str, Tensor], source: str) -> None:
    """Check that a model can compute with all tensors: they are float64, float32, float16 or bfloat16, and finite.

    Raises:
        CheckpointError: some are not; up to ten are listed.
    """
    require_float_dtypes({name: tensor.dtype for name, tensor in state.items()}, source)
    # Checked as float32, the widest dtype in which models are loaded.
    if not_finite := [name for name, tensor in sorted(state.items()) if not torch.isfinite(tensor.float()).all()]:
        raise CheckpointError(
            f"{source} contains NaN or infinite values",
            code="not-finite",
            got=_join_first(not_finite),
            fix="use another checkpoint, or copy the file again if the original is intact",
        )


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str, *, assign: bool = False) -> None:
    """Load all tensors of a module or none, without changing requires_grad.

    Args:
        module, state: the module and its tensors by name.
        source: where the weights come from, for the error message.
        assign: replace the module's tensors (which may be on the meta device) instead of copying into them; this also
            changes their dtypes.

    Raises:
        CheckpointError: a name or shape does not match; the message lists up to ten names of each kind.
    """
    compare_shapes(shapes_of(module.state_dict()), shapes_of(state)).raise_if_any(source)
    load_preserving_requires_grad(module, state, assign=assign)


def load_preserving_requires_grad(module: nn.Module, state: Mapping[str, Tensor], *, assign: bool) -> None:
    """Load a possibly partial state dict whose shapes have already been checked, without changing requires_grad."""
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    module.load_state_dict(state, strict=False, assign=assign)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trainable)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Compute a hash that distinguishes sets of weights without reading all values.

    It covers the name, the shape and 64 evenly spaced values of every tensor, so further training changes it. It
    guards against mistakes, not against forgery.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        flat = state[name].detach().reshape(-1)
        indices = torch.linspace(0, max(0, flat.numel() - 1), min(64, flat.numel()), dtype=torch.float64).long()
        values = flat[indices.to(flat.device)].to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes()
        digest.update(f"{name} {tuple(state[name].shape)} ".encode() + values)
    return digest.hexdigest()


def _join_first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")
