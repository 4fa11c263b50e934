"""Names of a Wan VAE's tensors, original and diffusers', and its sizes read off names and shapes.

Two forms. Wan2.1 counts all entries of encoder and decoder in one row (`encoder.downsamples.4`); Wan2.2 nests
them by level (`encoder.downsamples.1.downsamples.0`). diffusers nests all but the encoder of Wan2.1.
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
    """What a Wan VAE's names and shapes follow from; the fields are those of `NewVae`."""

    z_dim: int
    base_dim: int
    decoder_base_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: int
    temporal_downsample: tuple[bool, ...]
    residual: bool

    @property
    def spatial_factor(self) -> int:
        """Pixels that one latent is high and wide."""
        return 2 ** (len(self.dim_mult) - 1) * (2 if self.residual else 1)


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
    """The same under diffusers' names; names that are none of the original ones stay."""
    table = _modules(sizes)
    return {_renamed(name, table): tensor for name, tensor in tensors.items()}


def to_original(tensors: Mapping[str, T], sizes: VaeSizes) -> dict[str, T]:
    """The same under the original names; names that are none of diffusers' stay."""
    table = {theirs: original for original, theirs in _modules(sizes).items()}
    return {_renamed(name, table): tensor for name, tensor in tensors.items()}


def strip_model_prefix(tensors: Mapping[str, T]) -> dict[str, T]:
    """The same without the prefix `model.`, which the original code's module puts before all of its names."""
    prefixed = all(name.startswith("model.") for name in tensors)
    return {name.removeprefix("model.") if prefixed else name: tensor for name, tensor in tensors.items()}


def has_original_names(shapes: Mapping[str, object]) -> bool:
    """Whether these are a Wan VAE's tensors under the original names."""
    return any(name.startswith("encoder.downsamples.") for name in shapes)


def infer_sizes(shapes: _Shapes) -> VaeSizes:
    """The sizes of a VAE from its original names and shapes.

    Raises:
        CheckpointError: a tensor that tells a size is missing or of no possible shape.
    """
    levels = _levels(shapes)
    base_dim = _width(shapes, "encoder.conv1.weight")
    widths = [_width(shapes, f"{level[0]}.residual.2.weight") for level in levels]
    if not levels or any(width % base_dim for width in widths):
        raise CheckpointError(
            "the tensors are not a Wan VAE's",
            got=f"levels of the encoder with {widths} channels, encoder.conv1.weight with {base_dim}",
            wanted="multiples of the first width",
        )
    dim_mult = tuple(width // base_dim for width in widths)
    return VaeSizes(
        z_dim=_width(shapes, "conv2.weight"),
        base_dim=base_dim,
        decoder_base_dim=_width(shapes, "decoder.head.0.gamma") // dim_mult[0],
        dim_mult=dim_mult,
        num_res_blocks=sum(_has(shapes, f"{entry}.residual.") for entry in levels[0]),
        temporal_downsample=tuple(_has(shapes, f"{level[-1]}.time_conv.") for level in levels[:-1]),
        residual=_has(shapes, "encoder.downsamples.0.downsamples."),
    )


@cache
def _modules(sizes: VaeSizes) -> Mapping[str, str]:
    """Every module with tensors of its own: its original name, and diffusers'. Also those that a size leaves out."""
    table = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
    for coder in ("encoder", "decoder"):
        heads = {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"}
        table |= {f"{coder}.{original}": f"{coder}.{theirs}" for original, theirs in heads.items()}
        table |= _within(f"{coder}.middle.0", f"{coder}.mid_block.resnets.0", _RESIDUAL)
        table |= _within(f"{coder}.middle.1", f"{coder}.mid_block.attentions.0", _ATTENTION)
        table |= _within(f"{coder}.middle.2", f"{coder}.mid_block.resnets.1", _RESIDUAL)
    for original, theirs, inner in _entries(sizes):
        table |= _within(original, theirs, inner)
    return table


def _entries(sizes: VaeSizes) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """Residual blocks and resamplers of all levels: original name, diffusers', and what is in them."""
    for coder, code, last in (("encoder", "down", sizes.num_res_blocks), ("decoder", "up", sizes.num_res_blocks + 1)):
        sampler = f"{code}sampler" if sizes.residual else f"{code}samplers.0"
        for level in range(len(sizes.dim_mult)):
            for entry in range(last + 1):
                inner, place = (_RESIDUAL, f"resnets.{entry}") if entry < last else (_RESAMPLE, sampler)
                nested = f"{coder}.{code}_blocks.{level}.{place}"
                flat = level * (last + 1) + entry
                if sizes.residual:
                    yield f"{coder}.{code}samples.{level}.{code}samples.{entry}", nested, inner
                else:
                    theirs = nested if coder == "decoder" else f"{coder}.{code}_blocks.{flat}"
                    yield f"{coder}.{code}samples.{flat}", theirs, inner


def _levels(shapes: _Shapes) -> list[list[str]]:
    """The encoder's entries in order, level by level; in the flat form a resampler ends a level."""
    found = {m[0] for name in shapes if (m := re.match(r"encoder\.downsamples\.\d+(\.downsamples\.\d+)?(?=\.)", name))}
    entries = sorted((tuple(map(int, re.findall(r"\d+", entry))), entry) for entry in found)
    levels: dict[int, list[str]] = {}
    level = 0
    for numbers, entry in entries:
        levels.setdefault(numbers[0] if len(numbers) == 2 else level, []).append(entry)
        level += _has(shapes, f"{entry}.resample.")
    return list(levels.values())


def _within(original: str, theirs: str, inner: Mapping[str, str]) -> dict[str, str]:
    return {f"{original}.{a}": f"{theirs}.{b}" for a, b in inner.items()}


def _renamed(name: str, table: Mapping[str, str]) -> str:
    module, _, last = name.rpartition(".")
    return f"{table[module]}.{last}" if module in table else name


def _has(shapes: _Shapes, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in shapes)


def _width(shapes: _Shapes, name: str) -> int:
    if not shapes.get(name) or not shapes[name][0]:
        got = "it is missing" if name not in shapes else f"shape {shapes[name]}"
        raise CheckpointError(f"the VAE's tensor {name} does not tell its size", got=got, wanted="a Wan VAE's weights")
    return shapes[name][0]
