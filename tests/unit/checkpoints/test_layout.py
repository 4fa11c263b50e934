"""Names and shapes of all tensors in the published diffusers folder at full size (on the meta device)."""

import pytest
import torch

from kiwi.checkpoints.diffusers_layout import EMBEDDERS, from_diffusers_parts, to_diffusers_parts, to_hub_name
from kiwi.checkpoints.published import make_zero_text_embedding
from kiwi.errors import CheckpointError
from kiwi.models.config import KiwiConfig
from kiwi.models.connectors import QueryConnector
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.vae.formats import read_network_sizes
from kiwi.weights.strict import shapes_of
from kiwi.weights.vae_names import has_original_names, infer_sizes, to_diffusers, to_original

SIZES = {"5b": ({}, 825, 196), "14b": ({"query": QueryConnector(reference=384)}, 1095, 194)}


@pytest.fixture(params=SIZES, scope="module")
def full(request):
    changes, tensors, vae = SIZES[request.param]
    with torch.device("meta"):
        model = KiwiEdit(KiwiConfig.untrained(request.param).replace(**changes))
        text = make_zero_text_embedding(model.config.dit.dim, torch.bfloat16)
    state = {n: t for n, t in model.state_dict().items() if not n.startswith(("vae.", "mllm."))}
    return model, state, {f"dit.{name}": tensor for name, tensor in text.items()}, tensors, vae


def test_a_full_size_folder_round_trips_with_equal_names(full):
    _, state, text, tensors, _ = full
    parts = to_diffusers_parts(state | text)
    assert len(parts["transformer"]) == tensors
    assert parts.keys() == {"transformer", "mllm_encoder", *EMBEDDERS}
    back = from_diffusers_parts(parts)
    assert shapes_of(back) == shapes_of(state)
    again = to_diffusers_parts(back | text)
    assert again.keys() == parts.keys()
    assert all(shapes_of(again[part]) == shapes_of(weights) for part, weights in parts.items())


def test_two_names_of_one_tensor_are_rejected_in_any_file():
    tensor = torch.ones(1)
    for second in (("transformer", "blocks.0.self_attn.q.weight"), ("mllm_encoder", "dit.blocks.0.self_attn.q.weight")):
        parts = {"transformer": {"blocks.0.attn1.to_q.weight": tensor}, "mllm_encoder": {}}
        parts[second[0]][second[1]] = tensor
        with pytest.raises(
            CheckpointError, match=f"two names. Got: transformer/blocks.0.attn1.to_q.weight and {second[0]}/"
        ):
            from_diffusers_parts(parts)


def test_the_encoder_file_has_the_published_names_and_shapes(full):
    model, state, *_ = full
    dim, query = model.config.dit.dim, model.config.query
    connector = {"0.weight": (dim, 2048), "0.bias": (dim,), "2.weight": (dim, dim), "2.bias": (dim,)}
    expected = {f"{name}.{rest}": shape for name in ("connector", "ref_connector") for rest, shape in connector.items()}
    expected |= {"image_queries": (256, 2048), "video_queries": (512, 2048), "ref_queries": (query.reference, 2048)}
    assert shapes_of(to_diffusers_parts(state)["mllm_encoder"]) == expected


def test_the_names_of_the_vae_round_trip_through_those_of_wan(full):
    model, *_, count = full
    network = model.vae.vae.state_dict()
    sizes = infer_sizes(shapes_of(to_original(network, read_network_sizes(model.vae.vae))))
    original = to_original(network, sizes)
    assert len(original) == count
    assert has_original_names(original)
    assert to_diffusers(original, sizes).keys() == network.keys()


def test_the_names_of_the_mllm_are_those_of_the_files_on_the_hub(full):
    names = {to_hub_name(name) for name in full[0].mllm.model.state_dict()}
    assert {"model.embed_tokens.weight", "model.layers.35.mlp.down_proj.weight", "model.norm.weight"} <= names
    assert "visual.blocks.31.attn.qkv.weight" in names
    assert all(name.startswith(("model.", "visual.")) for name in names)
    assert len(names) == 2 + 36 * 12 + 390
