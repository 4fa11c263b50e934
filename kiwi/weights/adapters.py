"""Low-rank adapters (LoRA) among named tensors: recognising them by name, and merging them into the weights.

`X.lora_A.default.weight` (rank, in) and `X.lora_B.default.weight` (out, rank) adapt `X.weight`, which peft renames to
`X.base_layer.weight` while the adapter is attached. Merging computes W + B A: the factor alpha / rank is 1.
Files of other programs are read by `kiwi.weights.lora_files`.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from kiwi.errors import CheckpointError
from kiwi.weights.files import State

LORA_A, LORA_B = ".lora_A.default.weight", ".lora_B.default.weight"


def is_adapter(name: str) -> bool:
    """Whether a tensor of this name belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def without_base_layer(name: str) -> str:
    """Return the name that a tensor has in a module without adapters."""
    return name.replace(".base_layer.", ".")


def with_base_layer(name: str, adapters: Iterable[str]) -> str:
    """Return the name that a tensor has in a module with these adapters."""
    layer, _, parameter = name.rpartition(".")
    return f"{layer}.base_layer.{parameter}" if f"{layer}{LORA_A}" in adapters else name


def split_adapters(state: Mapping[str, Tensor]) -> tuple[State, State]:
    """Split a state dict into weights and adapters."""
    weights = {name: tensor for name, tensor in state.items() if not is_adapter(name)}
    return weights, {name: tensor for name, tensor in state.items() if is_adapter(name)}


def matches_target(layer: str, targets: Iterable[str]) -> bool:
    """Whether a layer's name equals one of the targets or ends with `.target`."""
    return any(layer == target or layer.endswith(f".{target}") for target in targets)


def list_adapted_layers(adapters: Mapping[str, Tensor]) -> list[str]:
    """List the names of the layers that have an adapter.

    Raises:
        CheckpointError: an adapter lacks A or B, is not called "default", or A or B is not a matrix.
    """
    for name, tensor in adapters.items():
        layer = name.removesuffix(LORA_A).removesuffix(LORA_B)
        halves = {layer + LORA_A, layer + LORA_B}
        if layer == name:
            got = "a tensor that does not belong to an adapter called 'default'"
        elif not halves <= adapters.keys():
            got = f"no {min(halves - adapters.keys())}"
        elif tensor.ndim != 2 or not tensor.numel():
            got = f"shape {tuple(tensor.shape)}"
        else:
            continue
        raise CheckpointError(
            f"the adapter tensor {name} is invalid",
            code="invalid-adapter",
            got=got,
            expected=f"matrices X{LORA_A} (rank, in) and X{LORA_B} (out, rank) for a layer X",
        )
    return [name.removesuffix(LORA_A) for name in adapters if name.endswith(LORA_A)]


def merge_adapters(weights: Mapping[str, Tensor], adapters: Mapping[str, Tensor]) -> State:
    """Merge adapters into weights; names and dtypes are those of `weights`.

    Raises:
        CheckpointError: the weight of an adapter is missing or has a different shape; see also `list_adapted_layers`.
    """
    merged = dict(weights)
    for layer in list_adapted_layers(adapters):
        weight, a, b = merged.get(f"{layer}.weight"), adapters[layer + LORA_A], adapters[layer + LORA_B]
        if weight is None:
            raise CheckpointError(
                f"the adapter of {layer} cannot be merged: {layer}.weight is missing", code="mismatched-adapter"
            )
        if b.shape[1] != a.shape[0] or weight.shape != (b.shape[0], a.shape[1]):
            raise CheckpointError(
                f"the adapter of {layer} does not match the shape of its weight",
                code="mismatched-adapter",
                got=f"A {tuple(a.shape)}, B {tuple(b.shape)}, weight {tuple(weight.shape)}",
            )
        # Computed in float32, because rounding B A before the sum would lose small updates.
        merged[f"{layer}.weight"] = torch.addmm(weight.float(), b.float(), a.float()).to(weight.dtype)
    return merged


def infer_rank_and_targets(weights: State, adapters: State) -> tuple[int, tuple[str, ...]]:
    """Infer the rank of adapters and the target names that select their layers, such as "q" or "ffn.0".

    `weights` are those of the adapted module, by the names they have without adapters.

    Raises:
        CheckpointError: `Lora` cannot describe the adapters, because their ranks differ or a layer is missing; see
            also `list_adapted_layers`.
    """
    layers = list_adapted_layers(adapters)
    ranks = {adapters[layer + LORA_A].shape[0] for layer in layers}
    linear_layers = {name.removesuffix(".weight") for name, tensor in weights.items() if tensor.ndim == 2}
    targets = tuple(sorted({_find_target(layer, linear_layers - set(layers)) for layer in layers}))
    problems = [f"ranks {sorted(ranks)}"] if len(ranks) > 1 else []
    problems += [f"no weight for the adapter of {layer}" for layer in sorted(set(layers) - linear_layers)]
    if problems:
        raise CheckpointError(
            "these adapters cannot be kept separate from the weights",
            code="unsupported-adapters",
            got=problems[0],
            expected="adapters of one rank",
            fix="merge them with --adapters merge",
        )
    return ranks.pop(), targets


def _find_target(layer: str, others: Iterable[str]) -> str:
    """Return the shortest ending of a layer's name, such as "self_attn.q", that no layer without an adapter has."""
    parts = layer.split(".")
    shortest = 2 if parts[-1].isdigit() else 1
    endings = [".".join(parts[-count:]) for count in range(min(shortest, len(parts)), len(parts) + 1)]
    return next((end for end in endings if not any(matches_target(other, [end]) for other in others)), layer)
