"""Names of a Wan VAE's tensors, original and diffusers', and its sizes inferred from names and shapes.

There are two forms. Wan2.1 numbers all layers of the encoder or decoder consecutively (`encoder.downsamples.4`);
Wan2.2 nests them by level (`encoder.downsamples.1.downsamples.0`). diffusers nests all but the encoder of Wan2.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple, TypeVar

from kiwi.errors import CheckpointError

T = TypeVar("T")
_Shapes = Mapping[str, tuple[int, ...]]


class VaeSizes(NamedTuple):
    """The sizes that determine a Wan VAE's names and shapes; the fields are those of `NewVae`."""

    z_dim: int
    base_dim: int
    decoder_base_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: int
    temporal_downsample: tuple[bool, ...]
    residual: bool

    @property
    def spatial_factor(self) -> int:
        """Height and width of one latent in pixels."""
        return int(2 ** (len(self.dim_mult) - 1)) * (2 if self.residual else 1)


_RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_RESAMPLE = {"resample.1": "resample.1", "time_conv": "time_conv"}
_ATTENTION = {"norm": "norm", "to_qkv": "to_qkv", "proj": "proj"}


def to_diffusers(tensors: Mapping[str, T], sizes: VaeSizes) -> dict[str, T]:
    """The same tensors under diffusers' names; names that are not original ones stay."""
    table = _modules(sizes)
    return {_rename(name, table): tensor for name, tensor in tensors.items()}


def to_original(tensors: Mapping[str, T], sizes: VaeSizes) -> dict[str, T]:
    """The same tensors under the original names; names that are not diffusers' stay."""
    table = {diffusers: original for original, diffusers in _modules(sizes).items()}
    return {_rename(name, table): tensor for name, tensor in tensors.items()}


def strip_model_prefix(tensors: Mapping[str, T]) -> dict[str, T]:
    """The same tensors without `model.`, which the original code's module puts before all of its names."""
    prefixed = all(name.startswith("model.") for name in tensors)
    return {name.removeprefix("model.") if prefixed else name: tensor for name, tensor in tensors.items()}


def has_original_names(shapes: Mapping[str, object]) -> bool:
    """Whether these are a Wan VAE's tensors under the original names."""
    return any(name.startswith("encoder.downsamples.") for name in shapes)


def infer_sizes(shapes: _Shapes) -> VaeSizes:
    """Infer the sizes of a VAE from its original names and shapes.

    Raises:
        CheckpointError: a tensor that determines a size is missing or has an impossible shape.
    """
    levels = _levels(shapes)
    base_dim = _width(shapes, "encoder.conv1.weight")
    widths = [_width(shapes, f"{level[0]}.residual.2.weight") for level in levels]
    if not levels or any(width % base_dim for width in widths):
        raise CheckpointError(
            "the tensors are not those of a Wan VAE",
            code="not-a-wan-vae",
            got=f"levels of the encoder with {widths} channels, encoder.conv1.weight with {base_dim}",
            expected="multiples of the first width",
        )
    dim_mult = tuple(width // base_dim for width in widths)
    return VaeSizes(
        z_dim=_width(shapes, "conv2.weight"),
        base_dim=base_dim,
        decoder_base_dim=_width(shapes, "decoder.head.0.gamma") // dim_mult[0],
        dim_mult=dim_mult,
        num_res_blocks=sum(_has(shapes, f"{layer}.residual.") for layer in levels[0]),
        temporal_downsample=tuple(_has(shapes, f"{level[-1]}.time_conv.") for level in levels[:-1]),
        residual=_has(shapes, "encoder.downsamples.0.downsamples."),
    )


@cache
def _modules(sizes: VaeSizes) -> Mapping[str, str]:
    """Original to diffusers' name of every module with tensors, including some that a VAE of these sizes lacks."""
    table = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
    for coder in ("encoder", "decoder"):
        heads = {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"}
        table |= {f"{coder}.{original}": f"{coder}.{diffusers}" for original, diffusers in heads.items()}
        table |= _submodules(f"{coder}.middle.0", f"{coder}.mid_block.resnets.0", _RESIDUAL)
        table |= _submodules(f"{coder}.middle.1", f"{coder}.mid_block.attentions.0", _ATTENTION)
        table |= _submodules(f"{coder}.middle.2", f"{coder}.mid_block.resnets.1", _RESIDUAL)
    for original, diffusers, inner in _layers(sizes):
        table |= _submodules(original, diffusers, inner)
    return table


def _layers(sizes: VaeSizes) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """Residual blocks and resamplers of all levels: original name, diffusers' name, and the names inside them."""
    for coder, code, last in (("encoder", "down", sizes.num_res_blocks), ("decoder", "up", sizes.num_res_blocks + 1)):
        sampler = f"{code}sampler" if sizes.residual else f"{code}samplers.0"
        for level in range(len(sizes.dim_mult)):
            for index in range(last + 1):
                inner, layer = (_RESIDUAL, f"resnets.{index}") if index < last else (_RESAMPLE, sampler)
                nested = f"{coder}.{code}_blocks.{level}.{layer}"
                flat = level * (last + 1) + index
                if sizes.residual:
                    yield f"{coder}.{code}samples.{level}.{code}samples.{index}", nested, inner
                else:
                    diffusers = nested if coder == "decoder" else f"{coder}.{code}_blocks.{flat}"
                    yield f"{coder}.{code}samples.{flat}", diffusers, inner


def _levels(shapes: _Shapes) -> list[list[str]]:
    """The encoder's layers in order, level by level; in the flat form a resampler ends a level."""
    layers = {m[0] for name in shapes if (m := re.match(r"encoder\.downsamples\.\d+(\.downsamples\.\d+)?(?=\.)", name))}
    ordered = sorted((tuple(map(int, re.findall(r"\d+", layer))), layer) for layer in layers)
    levels: dict[int, list[str]] = {}
    level = 0
    for numbers, layer in ordered:
        levels.setdefault(numbers[0] if len(numbers) == 2 else level, []).append(layer)
        level += _has(shapes, f"{layer}.resample.")
    return list(levels.values())


def _submodules(original: str, diffusers: str, inner: Mapping[str, str]) -> dict[str, str]:
    return {f"{original}.{a}": f"{diffusers}.{b}" for a, b in inner.items()}


def _rename(name: str, table: Mapping[str, str]) -> str:
    module, _, last = name.rpartition(".")
    return f"{table[module]}.{last}" if module in table else name


def _has(shapes: _Shapes, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in shapes)


def _width(shapes: _Shapes, name: str) -> int:
    if not shapes.get(name) or not shapes[name][0]:
        got = "it is missing" if name not in shapes else f"shape {shapes[name]}"
        raise CheckpointError(
            f"the tensor {name} does not determine the size of the VAE",
            code="not-a-wan-vae",
            got=got,
            expected="the weights of a Wan VAE",
        )
    return shapes[name][0]
