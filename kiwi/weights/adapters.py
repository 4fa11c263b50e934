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


def matches_target(layer: str, targets: Iterable[str]) -> bool:
    """Whether a layer is one of those that adapters' targets name: by its whole name, or by how it ends."""
    return any(layer == target or layer.endswith(f".{target}") for target in targets)


def adapted_layers(adapters: Mapping[str, Tensor]) -> list[str]:
    """Names of the layers that have an adapter.

    Raises:
        CheckpointError: an adapter without its other half, not called "default", or not of two matrices.
    """
    for name, tensor in adapters.items():
        layer = name.removesuffix(A).removesuffix(B)
        halves = {layer + A, layer + B}
        if layer == name or not halves <= adapters.keys() or tensor.ndim != 2:
            if layer == name:
                got = "a name that is not peft's for an adapter called 'default'"
            else:
                got = f"shape {tuple(tensor.shape)}" if tensor.ndim != 2 else f"no {min(halves - adapters.keys())}"
            wanted = f"matrices X{A} (rank, in) and X{B} (out, rank) for a layer X"
            raise CheckpointError(f"the adapter {name} cannot be used", got=got, wanted=wanted)
    return [name.removesuffix(A) for name in adapters if name.endswith(A)]


def merge_adapters(weights: Mapping[str, Tensor], adapters: Mapping[str, Tensor]) -> State:
    """Plain weights with the adapters merged in; the result has the names and types of `weights`.

    Raises:
        CheckpointError: an adapter without a weight or of another shape, or as `adapted_layers`.
    """
    merged = dict(weights)
    for layer in adapted_layers(adapters):
        weight, a, b = merged.get(f"{layer}.weight"), adapters[layer + A], adapters[layer + B]
        if weight is None:
            raise CheckpointError(
                f"the adapter of {layer} cannot be merged", got="no such weight", wanted=f"{layer}.weight"
            )
        if b.shape[1] != a.shape[0] or weight.shape != (b.shape[0], a.shape[1]):
            raise CheckpointError(
                f"the adapter of {layer} does not fit its weight",
                got=f"A {tuple(a.shape)}, B {tuple(b.shape)}, weight {tuple(weight.shape)}",
            )
        # At float32: rounding B A before the sum would lose what small updates learned.
        merged[f"{layer}.weight"] = torch.addmm(weight.float(), b.float(), a.float()).to(weight.dtype)
    return merged


def rank_and_targets(weights: Mapping[str, Tensor], adapters: Mapping[str, Tensor]) -> tuple[int, tuple[str, ...]]:
    """The rank of adapters and the last parts of the names of the layers that have them ("ffn.0" keeps its number).

    Args:
        weights: of the module that they are kept beside, by the names that it has without them.
        adapters: of it.

    Raises:
        CheckpointError: more than one rank, or adapters on a part of the layers with such names, which `Lora` cannot
            say; or as `adapted_layers`.
    """
    layers = adapted_layers(adapters)
    ranks = {adapters[layer + A].shape[0] for layer in layers}
    targets = tuple(sorted({_ending(layer) for layer in layers}))
    named = {name.removesuffix(".weight") for name, tensor in weights.items() if tensor.ndim == 2}
    without = sorted(layer for layer in named - set(layers) if matches_target(layer, targets))
    outside = sorted(set(layers) - named)
    if len(ranks) > 1 or without or outside:
        got = f"ranks {sorted(ranks)}" if len(ranks) > 1 else f"none for {without[0]}" if without else outside[0]
        raise CheckpointError(
            "these adapters cannot be kept beside the weights",
            got=got,
            wanted="adapters of one rank, on all layers of the same name",
            fix="merge them: --adapters merge",
        )
    return ranks.pop(), targets


def _ending(layer: str) -> str:
    parts = layer.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]
