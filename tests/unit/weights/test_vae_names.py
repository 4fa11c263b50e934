"""Names and shapes of Wan's VAE files at full size (on the meta device), and of the golden vectors."""

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors import safe_open

from kiwi.errors import CheckpointError
from kiwi.models.vae.formats import read_network_sizes
from kiwi.models.vae.wan import NewVae
from kiwi.weights.strict import shapes_of
from kiwi.weights.vae_names import has_original_names, infer_sizes, strip_model_prefix, to_diffusers, to_original

GOLDEN = Path(__file__).parents[2] / "golden"
FULL = {"wan21": (NewVae.wan21(), 194, 126.9), "wan22": (NewVae.wan22(), 196, 704.7)}


def shapes_and_sizes(spec):
    """Return the shapes, by diffusers' names, of the network that a spec describes, and its sizes."""
    with torch.device("meta"):
        network = spec.build().vae
    return shapes_of(network.state_dict()), read_network_sizes(network)


@pytest.mark.parametrize("form", FULL)
def test_the_full_size_vae_has_the_published_numbers_of_tensors_and_parameters(form):
    spec, tensors, millions = FULL[form]
    diffusers, sizes = shapes_and_sizes(spec)
    original = to_original(diffusers, sizes)
    assert len(original) == tensors
    assert round(sum(map(math.prod, original.values())) / 1e6, 1) == millions
    assert to_diffusers(original, sizes) == diffusers
    assert infer_sizes(original) == sizes
    assert has_original_names(original)
    assert not has_original_names(diffusers)


def test_full_size_names_have_the_shapes_of_the_published_files():
    flat = to_original(*shapes_and_sizes(NewVae.wan21()))
    assert flat["encoder.downsamples.5.time_conv.weight"] == (192, 192, 3, 1, 1)
    assert flat["decoder.upsamples.4.shortcut.weight"] == (384, 192, 1, 1, 1)
    assert flat["decoder.upsamples.11.resample.1.weight"] == (96, 192, 3, 3)
    nested = to_original(*shapes_and_sizes(NewVae.wan22()))
    assert nested["encoder.conv1.weight"] == (160, 12, 3, 3, 3)
    assert nested["encoder.downsamples.2.downsamples.2.time_conv.weight"] == (640, 640, 3, 1, 1)
    assert nested["decoder.upsamples.0.upsamples.3.resample.1.weight"] == (1024, 1024, 3, 3)
    assert nested["decoder.head.2.weight"] == (12, 256, 3, 3, 3)


def test_names_of_the_flat_form_agree_with_the_converter_of_diffusers():
    diffusers, sizes = shapes_and_sizes(NewVae.wan21())
    assert convert_wan_vae_to_diffusers(to_original(diffusers, sizes)) == diffusers


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("temporal", [(True, True), (True, False, True)])
def test_any_number_of_blocks_and_levels_round_trips_and_is_inferred(residual, blocks, temporal):
    spec = NewVae(
        z_dim=5,
        base_dim=4,
        decoder_base_dim=6,
        # Shortcuts need widths that divide each other, and a last level no wider than the one before.
        dim_mult=((1, 2, 2, 2) if residual else (1, 3, 2, 4))[: len(temporal) + 1],
        temporal_downsample=temporal,
        num_res_blocks=blocks,
        residual=residual,
    )
    diffusers, sizes = shapes_and_sizes(spec)
    original = to_original(diffusers, sizes)
    assert to_diffusers(original, sizes) == diffusers
    assert not any(".resnets." in name or "_block" in name or "quant" in name for name in original)
    assert infer_sizes(original) == sizes
    assert (sizes.num_res_blocks, sizes.decoder_base_dim, sizes.temporal_downsample) == (blocks, 6, temporal)


@pytest.mark.parametrize("case", ["vae_wan21", "vae_wan22"])
def test_the_golden_weights_have_exactly_these_names_and_shapes(case):
    config = json.loads((GOLDEN / f"{case}.json").read_text())["config"]
    with safe_open(GOLDEN / f"{case}.safetensors", framework="pt") as file:
        shapes = {
            name.removeprefix("weights/"): tuple(file.get_slice(name).get_shape())
            for name in file.keys()  # noqa: SIM118
            if name.startswith("weights/")
        }
    sizes = infer_sizes(shapes)
    assert (sizes.z_dim, sizes.base_dim, sizes.decoder_base_dim) == (config["z_dim"], config["dim"], config["dec_dim"])
    assert (sizes.dim_mult, sizes.num_res_blocks) == (tuple(config["dim_mult"]), config["num_res_blocks"])
    assert sizes.temporal_downsample == tuple(config["temperal_downsample"])
    assert sizes.residual == (case == "vae_wan22")
    diffusers, _ = shapes_and_sizes(NewVae(**sizes._asdict()))
    assert to_original(diffusers, sizes) == shapes


def test_the_prefix_is_removed_only_if_every_name_has_it():
    assert strip_model_prefix({"model.conv1.bias": 1, "model.conv2.bias": 2}) == {"conv1.bias": 1, "conv2.bias": 2}
    assert strip_model_prefix({"model.conv1.bias": 1, "conv2.bias": 2}) == {"model.conv1.bias": 1, "conv2.bias": 2}


@pytest.mark.parametrize(
    "name", ["conv2.weight", "encoder.conv1.weight", "decoder.head.0.gamma", "encoder.downsamples.2.residual.2.weight"]
)
def test_a_missing_tensor_that_determines_a_size_is_named(name):
    original = to_original(*shapes_and_sizes(NewVae(base_dim=4)))
    del original[name]
    with pytest.raises(
        CheckpointError, match=f"{name}.*no such tensor", check=lambda error: error.code == "not-a-wan-vae"
    ):
        infer_sizes(original)


def test_widths_that_are_not_multiples_of_the_first_are_rejected():
    original = to_original(*shapes_and_sizes(NewVae(base_dim=4)))
    with pytest.raises(CheckpointError, match=r"\[4, 8, 16\] and encoder.conv1.weight of width 3"):
        infer_sizes({**original, "encoder.conv1.weight": (3, 3, 3, 3, 3)})
