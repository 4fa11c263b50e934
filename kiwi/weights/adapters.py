"""Low-rank adapters among named tensors: told by their names, merged into the weights that they belong to.

`X.lora_A.default.weight` (r, in) and `X.lora_B.default.weight` (out, r) belong to `X.weight`, which peft calls
`X.base_layer.weight` while the adapter is beside it. Merging is W + B A: the factor alpha / rank is 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from kiwi.errors import CheckpointError
from kiwi.weights.files import State

A, B = ".lora_A.default.weight", ".lora_B.default.weight"


def is_adapter(name: str) -> bool:
    """Whether a tensor belongs to an adapter, by its name."""
    return ".lora_A." in name or ".lora_B." in name


def without_base_layer(name: str) -> str:
    """The name that a tensor has in a module without adapters."""
    return name.replace(".base_layer.", ".")


def with_base_layer(name: str, adapters: Iterable[str]) -> str:
    """The name that a tensor gets in a module with these adapters."""
    stem, _, last = name.rpartition(".")
    return f"{stem}.base_layer.{last}" if f"{stem}{A}" in adapters else name


def merge(weights: Mapping[str, Tensor], adapters: Mapping[str, Tensor]) -> State:
    """Plain weights with the adapters merged in; the result has the names and types of `weights`.

    Raises:
        CheckpointError: an adapter without its other half or without a weight, or of another shape.
    """
    merged = dict(weights)
    for name in adapters:
        layer = name.removesuffix(A).removesuffix(B)
        weight, a, b = merged.get(f"{layer}.weight"), adapters.get(layer + A), adapters.get(layer + B)
        if layer == name or weight is None or a is None or b is None:
            raise CheckpointError(
                f"the adapter {name} cannot be merged",
                got="no such weight" if weight is None else "one half of it, or a name that is not peft's",
                wanted=f"{layer}.weight, {layer}{A} and {layer}{B}",
            )
        if b.shape[1] != a.shape[0] or weight.shape != (b.shape[0], a.shape[1]):
            raise CheckpointError(
                f"the adapter of {layer} does not fit its weight",
                got=f"A {tuple(a.shape)}, B {tuple(b.shape)}, weight {tuple(weight.shape)}",
            )
        if name.endswith(A):
            # At float32: rounding B A before the sum would lose what small updates learned.
            merged[f"{layer}.weight"] = torch.addmm(weight.float(), b.float(), a.float()).to(weight.dtype)
    return merged


def rank_and_targets(adapters: Mapping[str, Tensor]) -> tuple[int, tuple[str, ...]]:
    """The rank of adapters and the last parts of the names of the layers that have them ("ffn.0" keeps its number).

    Raises:
        CheckpointError: adapters of more than one rank.
    """
    ranks = {tensor.shape[0] for name, tensor in adapters.items() if name.endswith(A)}
    if len(ranks) != 1:
        raise CheckpointError("adapters of one rank are wanted", got=f"ranks {sorted(ranks)}")
    return ranks.pop(), tuple(sorted({_ending(name.removesuffix(A)) for name in adapters if name.endswith(A)}))


def _ending(layer: str) -> str:
    parts = layer.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]
