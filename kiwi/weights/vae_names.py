"""Conversion of a Wan VAE's tensor names between Wan and diffusers; inference of its sizes from names and shapes.

Wan's VAE has two forms. Wan2.1 numbers all layers of the encoder or decoder consecutively (`encoder.downsamples.4`);
Wan2.2 nests them by level (`encoder.downsamples.1.downsamples.0`). diffusers nests all but the encoder of Wan2.1.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple, TypeVar

from kiwi.errors import CheckpointError

T = TypeVar("T")
_Shapes = Mapping[str, tuple[int, ...]]


class VaeSizes(NamedTuple):
    """Sizes that determine the names and shapes of a Wan VAE's tensors, named like the fields of `NewVae`."""

    z_dim: int
    base_dim: int
    decoder_base_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: int
    temporal_downsample: tuple[bool, ...]
    residual: bool

    @property
    def spatial_factor(self) -> int:
        """Downsampling factor of height and width from pixels to latents."""
        return int(2 ** (len(self.dim_mult) - 1)) * (2 if self.residual else 1)


_RESIDUAL = {
    "residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}  # fmt: skip
_RESAMPLE = {"resample.1": "resample.1", "time_conv": "time_conv"}
_ATTENTION = {"norm": "norm", "to_qkv": "to_qkv", "proj": "proj"}


def to_diffusers(tensors: Mapping[str, T], sizes: VaeSizes) -> dict[str, T]:
    """Convert Wan's tensor names to diffusers'; unknown names are kept."""
    return _rename_modules(tensors, _map_module_names(sizes))


def to_original(tensors: Mapping[str, T], sizes: VaeSizes) -> dict[str, T]:
    """Convert diffusers' tensor names to Wan's; unknown names are kept."""
    return _rename_modules(tensors, {diffusers: original for original, diffusers in _map_module_names(sizes).items()})


def strip_model_prefix(tensors: Mapping[str, T]) -> dict[str, T]:
    """Remove the prefix `model.`, which Wan's code puts before all names, if all names have it."""
    prefixed = all(name.startswith("model.") for name in tensors)
    return {name.removeprefix("model.") if prefixed else name: tensor for name, tensor in tensors.items()}


def has_original_names(shapes: Mapping[str, object]) -> bool:
    """Whether tensor names are those of a Wan VAE in Wan's code."""
    return any(name.startswith("encoder.downsamples.") for name in shapes)


def infer_sizes(shapes: _Shapes) -> VaeSizes:
    """Infer the sizes of a VAE from the shapes of its tensors, given by Wan's names.

    Raises:
        CheckpointError: a tensor that determines a size is missing or has an impossible shape.
    """
    levels = _group_layers_by_level(shapes)
    base_dim = _read_width(shapes, "encoder.conv1.weight")
    widths = [_read_width(shapes, f"{level[0]}.residual.2.weight") for level in levels]
    if not levels or any(width % base_dim for width in widths):
        raise CheckpointError(
            "the tensors are not those of a Wan VAE",
            code="not-a-wan-vae",
            got=f"encoder levels of widths {widths} and encoder.conv1.weight of width {base_dim}",
            expected=f"at least one level, and widths that are multiples of {base_dim}",
        )
    dim_mult = tuple(width // base_dim for width in widths)
    return VaeSizes(
        z_dim=_read_width(shapes, "conv2.weight"),
        base_dim=base_dim,
        decoder_base_dim=_read_width(shapes, "decoder.head.0.gamma") // dim_mult[0],
        dim_mult=dim_mult,
        num_res_blocks=sum(_has_prefix(shapes, f"{layer}.residual.") for layer in levels[0]),
        temporal_downsample=tuple(_has_prefix(shapes, f"{level[-1]}.time_conv.") for level in levels[:-1]),
        residual=_has_prefix(shapes, "encoder.downsamples.0.downsamples."),
    )


@cache
def _map_module_names(sizes: VaeSizes) -> Mapping[str, str]:
    """Map Wan's module names to diffusers', including a few modules that a VAE of these sizes lacks."""
    table = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
    for coder in ("encoder", "decoder"):
        heads = {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"}
        table |= {f"{coder}.{original}": f"{coder}.{diffusers}" for original, diffusers in heads.items()}
        table |= _map_submodules(f"{coder}.middle.0", f"{coder}.mid_block.resnets.0", _RESIDUAL)
        table |= _map_submodules(f"{coder}.middle.1", f"{coder}.mid_block.attentions.0", _ATTENTION)
        table |= _map_submodules(f"{coder}.middle.2", f"{coder}.mid_block.resnets.1", _RESIDUAL)
    for original, diffusers, inner in _map_layers(sizes):
        table |= _map_submodules(original, diffusers, inner)
    return table


def _map_layers(sizes: VaeSizes) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """Yield Wan's name, diffusers' name and the submodule names of all residual blocks and resamplers."""
    num_blocks = {"encoder": sizes.num_res_blocks, "decoder": sizes.num_res_blocks + 1}
    for coder, direction in (("encoder", "down"), ("decoder", "up")):
        resampler = f"{direction}sampler" if sizes.residual else f"{direction}samplers.0"
        layers = [*((_RESIDUAL, f"resnets.{index}") for index in range(num_blocks[coder])), (_RESAMPLE, resampler)]
        for level in range(len(sizes.dim_mult)):
            for index, (inner, layer) in enumerate(layers):
                nested = f"{coder}.{direction}_blocks.{level}.{layer}"
                position = level * len(layers) + index
                if sizes.residual:
                    yield f"{coder}.{direction}samples.{level}.{direction}samples.{index}", nested, inner
                else:
                    diffusers = nested if coder == "decoder" else f"{coder}.{direction}_blocks.{position}"
                    yield f"{coder}.{direction}samples.{position}", diffusers, inner


def _group_layers_by_level(shapes: _Shapes) -> list[list[str]]:
    """Group the names of the encoder's layers by level, in order; without nesting, a resampler ends a level."""
    layers = {m[0] for name in shapes if (m := re.match(r"encoder\.downsamples\.\d+(\.downsamples\.\d+)?(?=\.)", name))}
    levels: dict[int, list[str]] = {}
    level = 0
    for indices, layer in sorted((tuple(map(int, re.findall(r"\d+", layer))), layer) for layer in layers):
        levels.setdefault(indices[0] if len(indices) == 2 else level, []).append(layer)
        level += _has_prefix(shapes, f"{layer}.resample.")
    return list(levels.values())


def _map_submodules(original: str, diffusers: str, inner: Mapping[str, str]) -> dict[str, str]:
    return {f"{original}.{wan_name}": f"{diffusers}.{new_name}" for wan_name, new_name in inner.items()}


def _rename_modules(tensors: Mapping[str, T], table: Mapping[str, str]) -> dict[str, T]:
    """Rename the modules in tensor names; names without a module in the table are kept."""
    split_names = ((name.rpartition("."), tensor) for name, tensor in tensors.items())
    return {f"{table.get(module, module)}{dot}{last}": tensor for (module, dot, last), tensor in split_names}


def _has_prefix(shapes: _Shapes, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in shapes)


def _read_width(shapes: _Shapes, name: str) -> int:
    if not shapes.get(name) or not shapes[name][0]:
        got = "no such tensor" if name not in shapes else f"shape {shapes[name]}"
        raise CheckpointError(f"{name} does not belong to a Wan VAE", code="not-a-wan-vae", got=got)
    return shapes[name][0]
