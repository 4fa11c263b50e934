"""The network of the video autoencoder, diffusers' AutoencoderKLWan: built to size, and loaded from any known format.

Known formats are diffusers' folders, the original files (Wan2.1_VAE.pth, Wan2.2_VAE.pth) and the VAE folder of a
published editor, which holds original names beside a config.json of its own.

diffusers is imported where a network is built: it takes a second, brings peft with it, and most of the package only
handles the specs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kiwi.errors import CheckpointError, SpecError
from kiwi.weights.files import State, read_json, read_weights
from kiwi.weights.strict import compare_shapes, load_strict, shapes_of
from kiwi.weights.vae_names import (
    VaeSizes,
    has_original_names,
    infer_sizes,
    strip_model_prefix,
    to_diffusers,
    to_original,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

STATISTICS = Path(__file__).with_name("wan_vae_statistics.json")
"""Mean and standard deviation of the published VAEs' latents, which are not in their files."""


def new_network(sizes: VaeSizes, mean: Sequence[float], deviation: Sequence[float]) -> AutoencoderKLWan:
    """A network at the library's initial weights.

    Args:
        sizes: channels, levels and blocks.
        mean, deviation: statistics that normalise each latent channel.
    """
    from diffusers import AutoencoderKLWan

    patch = 2 if sizes.residual else 1
    channels = 3 * patch * patch
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
        patch_size=patch if sizes.residual else None,
        latents_mean=list(mean),
        latents_std=list(deviation),
        scale_factor_spatial=sizes.spatial_factor,
    )


def require_valid_sizes(sizes: VaeSizes) -> None:
    """Refuse sizes that no Wan VAE can have.

    Raises:
        SpecError: naming the first that is wrong.
    """
    numbers = sizes.z_dim, sizes.num_res_blocks, sizes.base_dim, sizes.decoder_base_dim, *sizes.dim_mult
    # The decoder halves channels between levels, and one channel has no half.
    if min(numbers) < 1 or min(sizes.base_dim, sizes.decoder_base_dim) < 2:
        problem = "the autoencoder's sizes must be at least 1, and its widths at least 2"
        raise SpecError(problem, code="out-of-range", got=sizes)
    steps = sizes.temporal_downsample
    if len(steps) != len(sizes.dim_mult) - 1 or sum(steps) != 2:
        raise SpecError(
            "the autoencoder's levels and temporal_downsample do not match",
            code="inconsistent-sizes",
            got=f"{len(sizes.dim_mult)} levels, temporal_downsample {steps}",
            expected="one entry per step between levels, two of them true",
        )
    # Shortcuts fold pixels and frames into channels (8 of them for a step that halves time too, else 4, and none at
    # the last level) and take the mean of whole groups; the decoder's unfold them again.
    down, up, folds = sizes.dim_mult, sizes.dim_mult[::-1], [8 if step else 4 for step in steps]
    levels = [(a * fold, b) for a, b, fold in zip((1, *down), down, (*folds, 1), strict=False)]
    levels += [(b * fold, a) for a, b, fold in zip((up[0], *up), up, folds[::-1], strict=False)]
    if sizes.residual and any(channels % width for channels, width in levels):
        raise SpecError(
            "the residual autoencoder's shortcuts do not fit its widths",
            code="inconsistent-sizes",
            got=f"dim_mult {sizes.dim_mult}",
            expected="each width a divisor of 4 times the one before (8 where time halves too), the last of the one "
            "before itself, such as (1, 2, 2)",
        )


def load_network(path: Path) -> AutoencoderKLWan:
    """Load the network of a folder or file.

    Raises:
        CheckpointError: there is nothing to read, or as in `build_network`.
    """
    config = read_json(file) if (file := path / "config.json").is_file() else {}
    return build_network(read_weights(path), config, str(path))


def build_network(state: State, config: Mapping[str, Any], what: str) -> AutoencoderKLWan:
    """Build a network and load its weights strictly, as float32.

    Args:
        state: tensors under the original names, with or without the prefix `model.`, or under diffusers' names.
        config: content of config.json. Diffusers' names need all of it; for original names only latents_mean and
            latents_std are used, and the published VAEs do without.
        what: where the weights come from, for error messages.

    Raises:
        CheckpointError: not a Wan VAE, tensors that do not fit (all of them are named), or unknown statistics of the
            latents.
    """
    from diffusers import AutoencoderKLWan

    state = strip_model_prefix(state)
    original = has_original_names(state)
    if not original and config.get("_class_name") != "AutoencoderKLWan":
        raise CheckpointError(
            f"{what} does not hold a Wan VAE",
            code="not-a-wan-vae",
            got=", ".join(sorted(state)[:3]) or "no tensors",
            expected="the original names (encoder.downsamples.0...), or diffusers' with AutoencoderKLWan's config.json",
        )
    try:
        with torch.device("meta"):
            network = _network_for(state, config, what) if original else AutoencoderKLWan.from_config(config)
        _require_runnable(network)
    except CheckpointError:
        raise
    except Exception as problem:  # the library does not validate config.json and fails in any way
        message = f"{what} has sizes that no Wan VAE can have"
        raise CheckpointError(message, code="not-a-wan-vae", got=problem) from problem
    if original:
        sizes = network_sizes(network)
        # Compared under the file's own names first: those are the ones that its owner can look for.
        compare_shapes(to_original(shapes_of(network.state_dict()), sizes), shapes_of(state)).raise_if_any(what)
        state = to_diffusers(state, sizes)
    # Pixels depend on every digit, and the network is small beside the editor: float32 whatever it was saved in, and
    # copied, because overwriting a memory-mapped file crashes the process.
    copies = {name: tensor.to(torch.float32, copy=True) for name, tensor in state.items()}
    load_strict(network, copies, what, assign=True)
    mean, deviation = network.config.latents_mean, network.config.latents_std
    if not (_are_finite(mean, network.config.z_dim) and _are_finite(deviation, network.config.z_dim, above=0.0)):
        raise CheckpointError(
            f"the latents of {what} cannot be normalised",
            code="invalid-latent-statistics",
            got=f"means {mean} and deviations {deviation}",
            expected=f"{network.config.z_dim} finite numbers of each in its config.json, deviations above 0",
        )
    return network.eval()


def _require_runnable(network: AutoencoderKLWan) -> None:
    """Refuse a network that the library can build, but not run."""
    config = network.config
    require_valid_sizes(network_sizes(network))
    if config.patch_size not in (None, 2) or config.in_channels != 3 * (config.patch_size or 1) ** 2:
        got = f"patch_size {config.patch_size}, in_channels {config.in_channels}"
        raise SpecError("the patch size does not fit the channels", code="inconsistent-sizes", got=got)


def _are_finite(values: object, count: int, above: float = -math.inf) -> bool:
    """Whether `values` is a list of `count` finite numbers above a bound."""
    if not isinstance(values, (list, tuple)) or len(values) != count:
        return False
    return all(type(value) in (int, float) and above < value < math.inf for value in values)


def network_sizes(network: AutoencoderKLWan) -> VaeSizes:
    """Channels, levels and blocks of a network."""
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


def original_state(network: AutoencoderKLWan) -> State:
    """The network's tensors under the original names."""
    return to_original(network.state_dict(), network_sizes(network))


def _network_for(state: State, config: Mapping[str, Any], what: str) -> AutoencoderKLWan:
    """An empty network of the sizes that the tensors of an original file have."""
    sizes = infer_sizes(shapes_of(state))
    if {"latents_mean", "latents_std"} <= config.keys():
        return new_network(sizes, config["latents_mean"], config["latents_std"])
    forms = json.loads(STATISTICS.read_text(encoding="utf-8"))["forms"]
    form = next((f for f in forms if (f["z_dim"], f["residual"]) == (sizes.z_dim, sizes.residual)), None)
    if form is None:
        raise CheckpointError(
            f"the statistics that normalise the latents of {what} are unknown",
            code="missing-latent-statistics",
            got=f"{sizes.z_dim} latent channels in the {'Wan2.2' if sizes.residual else 'Wan2.1'} form",
            expected=", or ".join(f"{f['z_dim']} channels ({f['name']})" for f in forms),
            fix="put the weights into a folder with a config.json that holds latents_mean and latents_std",
        )
    return new_network(sizes, form["latents_mean"], form["latents_std"])
