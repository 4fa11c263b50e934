"""The network of the video autoencoder, AutoencoderKLWan of diffusers: made from sizes, or loaded from a known format.

Known formats are folders written by diffusers, the original files (Wan2.1_VAE.pth, Wan2.2_VAE.pth) and the VAE folder
of a published editor, which holds the original tensor names and its own kind of config.json.

diffusers is imported inside functions, because it takes a second, imports peft, and is not needed to handle specs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kiwi.errors import CheckpointError, SpecError
from kiwi.reading import read_json
from kiwi.weights import vae_names
from kiwi.weights.files import State
from kiwi.weights.strict import compare_shapes, load_strict, shapes_of
from kiwi.weights.vae_names import VaeSizes

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

LATENT_STATISTICS_FILE = Path(__file__).with_name("wan_vae_statistics.json")
"""File with mean and standard deviation of the published VAEs' latents, which are not in the VAEs' files."""


def make_network(sizes: VaeSizes, mean: Sequence[float], std: Sequence[float]) -> AutoencoderKLWan:
    """Make a network with the initial weights of diffusers; `mean` and `std` normalise each latent channel."""
    from diffusers import AutoencoderKLWan

    channels = 12 if sizes.residual else 3  # 2 x 2 pixels in RGB, or one
    return AutoencoderKLWan(
        base_dim=sizes.base_dim,
        decoder_base_dim=sizes.decoder_base_dim,
        z_dim=sizes.z_dim,
        dim_mult=list(sizes.dim_mult),
        num_res_blocks=sizes.num_res_blocks,
        temperal_downsample=list(sizes.temporal_downsample),
        is_residual=sizes.residual,
        in_channels=channels,
        out_channels=channels,
        patch_size=2 if sizes.residual else None,
        latents_mean=list(mean),
        latents_std=list(std),
        scale_factor_spatial=sizes.spatial_factor,
    )


def require_valid_sizes(sizes: VaeSizes) -> None:
    """Raise a SpecError if a Wan VAE cannot have these sizes."""
    counts = sizes.z_dim, sizes.num_res_blocks, sizes.base_dim, sizes.decoder_base_dim, *sizes.dim_mult
    # The decoder halves the channels between levels, so that a width must be at least 2.
    if min(counts) < 1 or min(sizes.base_dim, sizes.decoder_base_dim) < 2:
        message = "the autoencoder's sizes must be at least 1, and its widths at least 2"
        raise SpecError(message, code="out-of-range", got=sizes)
    steps = sizes.temporal_downsample
    if len(steps) != len(sizes.dim_mult) - 1 or sum(steps) != 2:
        message = f"the autoencoder's temporal_downsample {steps} does not match its {len(sizes.dim_mult)} levels"
        expected = "one entry per downsampling step between levels, exactly two of them true"
        raise SpecError(message, code="inconsistent-sizes", expected=expected)
    # A shortcut of the encoder folds pixels and frames into channels (times 8 if its level also halves time, else
    # times 4; times 1 at the last level) and averages groups of channels, which must be whole. The decoder reverses it.
    down, up, folds = sizes.dim_mult, sizes.dim_mult[::-1], [8 if halves_time else 4 for halves_time in steps]
    levels = [(before * fold, width) for before, width, fold in zip((1, *down), down, (*folds, 1), strict=False)]
    levels += [(width * fold, before) for before, width, fold in zip((up[0], *up), up, folds[::-1], strict=False)]
    if sizes.residual and any(channels % width for channels, width in levels):
        expected = "entries that divide 4 times the previous entry (8 times if the step halves time), "
        expected += "a last entry that divides the previous one, such as (1, 2, 2)"
        message = f"the residual autoencoder's shortcuts cannot have dim_mult {sizes.dim_mult}"
        raise SpecError(message, code="inconsistent-sizes", expected=expected)


def build_network(state: State, config: Mapping[str, Any], origin: str) -> AutoencoderKLWan:
    """Build a network and load its weights strictly, as float32.

    Args:
        state: tensors under the original names, with or without the prefix `model.`, or under those of diffusers.
        config: content of config.json. It must be complete for names of diffusers. For original names only latents_mean
            and latents_std are used, and not needed for the published sizes.
        origin: path or description of the weights' origin, for error messages.

    Raises:
        CheckpointError: if this is not a Wan VAE, tensors do not fit (the message names them all), or the statistics
            of the latents are unknown.
    """
    from diffusers import AutoencoderKLWan

    state = vae_names.strip_model_prefix(state)
    is_original = vae_names.has_original_names(state)
    if not is_original and config.get("_class_name") != "AutoencoderKLWan":
        got = ", ".join(sorted(state)[:3]) or "no tensors"
        expected = "original names (encoder.downsamples.0...), or names and config.json of AutoencoderKLWan"
        message = f"{origin} does not hold a Wan VAE"
        raise CheckpointError(message, code="not-a-wan-vae", got=got, expected=expected)
    try:
        with torch.device("meta"):
            network = _infer_network(state, config, origin) if is_original else AutoencoderKLWan.from_config(config)
        _require_runnable(network)
    except CheckpointError:
        raise
    except Exception as error:  # diffusers does not validate config.json, and may raise any exception
        message = f"{origin} has sizes that a Wan VAE cannot have"
        raise CheckpointError(message, code="not-a-wan-vae", got=error) from error
    if is_original:
        # Compared under the names in the file first, so that the error message shows those.
        compare_shapes(shapes_of(to_original_state(network)), shapes_of(state)).raise_if_any(origin)
        state = vae_names.to_diffusers(state, read_network_sizes(network))
    # Always float32, because rounded weights change pixels, and the network is small compared with the editor. Copied,
    # because overwriting a memory-mapped file crashes the process.
    copies = {name: tensor.to(torch.float32, copy=True) for name, tensor in state.items()}
    load_strict(network, copies, origin, assign=True)
    mean, std, z_dim = network.config.latents_mean, network.config.latents_std, network.config.z_dim
    if not (_are_finite_numbers(mean, z_dim) and _are_finite_numbers(std, z_dim, above=0.0)):
        message = f"{origin} has invalid latent statistics: latents_mean {mean}, latents_std {std}"
        expected = f"lists of {z_dim} finite numbers in config.json, with latents_std above 0"
        raise CheckpointError(message, code="invalid-latent-statistics", expected=expected)
    return network.eval()


def _require_runnable(network: AutoencoderKLWan) -> None:
    """Raise an error for a network that diffusers can build, but not run."""
    config = network.config
    require_valid_sizes(read_network_sizes(network))
    if config.patch_size not in (None, 2) or config.in_channels != 3 * (config.patch_size or 1) ** 2:
        got = f"patch_size {config.patch_size}, in_channels {config.in_channels}"
        raise SpecError("patch_size and in_channels do not match", code="inconsistent-sizes", got=got)


def _are_finite_numbers(values: object, count: int, above: float = -math.inf) -> bool:
    """Whether `values` is a list of `count` finite numbers, all above `above`."""
    if not isinstance(values, (list, tuple)) or len(values) != count:
        return False
    return all(type(value) in (int, float) and above < value < math.inf for value in values)


def read_network_sizes(network: AutoencoderKLWan) -> VaeSizes:
    """Read channels, levels and blocks from a network's configuration."""
    config = network.config
    return VaeSizes(
        z_dim=config.z_dim,
        base_dim=config.base_dim,
        decoder_base_dim=config.decoder_base_dim or config.base_dim,
        dim_mult=tuple(config.dim_mult),
        num_res_blocks=config.num_res_blocks,
        temporal_downsample=tuple(config.temperal_downsample),
        residual=config.is_residual,
    )


def to_original_state(network: AutoencoderKLWan) -> State:
    """Collect the network's tensors under the original names."""
    return vae_names.to_original(network.state_dict(), read_network_sizes(network))


def _infer_network(state: State, config: Mapping[str, Any], origin: str) -> AutoencoderKLWan:
    """Make a network whose sizes are inferred from tensors under the original names."""
    sizes = vae_names.infer_sizes(shapes_of(state))
    if {"latents_mean", "latents_std"} <= config.keys():
        return make_network(sizes, config["latents_mean"], config["latents_std"])
    published = read_json(LATENT_STATISTICS_FILE)["forms"]
    for vae in published:
        if (vae["z_dim"], vae["residual"]) == (sizes.z_dim, sizes.residual):
            return make_network(sizes, vae["latents_mean"], vae["latents_std"])
    raise CheckpointError(
        f"the latent statistics of {origin} are unknown",
        code="missing-latent-statistics",
        got=f"{sizes.z_dim} latent channels in the {'Wan2.2' if sizes.residual else 'Wan2.1'} architecture",
        expected=", or ".join(f"{vae['z_dim']} channels ({vae['name']})" for vae in published),
        fix="put the weights into a folder with a config.json that holds latents_mean and latents_std",
    )
