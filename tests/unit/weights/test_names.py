"""Names and shapes of the published files at full size (on the meta device)."""

import pytest
import torch

from kiwi.models.connectors import LatentConnector, QueryConnector
from kiwi.models.dit.transformer import DiTConfig
from kiwi.models.injection import AddSource, AppendReference
from kiwi.models.tuning import Lora
from kiwi.weights.adapters import is_adapter
from kiwi.weights.names import (
    TEXT_EMBEDDING,
    dit_from_diffusers,
    dit_to_diffusers,
    from_published,
    strip_checkpoint_prefixes,
    to_published,
)
from kiwi.weights.strict import shapes_of


def published_dit(dim, ffn, blocks, channels):
    """Names and shapes of the DiT in the published checkpoints."""
    shapes = {"head.modulation": (1, 2, dim)}
    layers = {
        "patch_embedding": (dim, channels, 1, 2, 2), "head.head": (4 * channels, dim),
        "text_embedding.0": (dim, 4096), "text_embedding.2": (dim, dim),
        "time_embedding.0": (dim, 256), "time_embedding.2": (dim, dim), "time_projection.1": (6 * dim, dim),
    }  # fmt: skip
    for i in range(blocks):
        shapes[f"blocks.{i}.modulation"] = (1, 6, dim)
        for attention in (f"blocks.{i}.self_attn", f"blocks.{i}.cross_attn"):
            layers |= {f"{attention}.{layer}": (dim, dim) for layer in "qkvo"}
            shapes |= {f"{attention}.{norm}.weight": (dim,) for norm in ("norm_q", "norm_k")}
        layers |= {f"blocks.{i}.norm3": (dim,), f"blocks.{i}.ffn.0": (ffn, dim), f"blocks.{i}.ffn.2": (dim, ffn)}
    shapes |= {f"{layer}.weight": shape for layer, shape in layers.items()}
    return shapes | {f"{layer}.bias": shape[:1] for layer, shape in layers.items()}


SIZES = {
    "5B": (DiTConfig(), (3072, 14336, 30, 48), 825),
    "14B": (DiTConfig.wan21_14b(), (5120, 13824, 40, 16), 1095),
    "1.3B": (DiTConfig.wan21_1_3b(), (1536, 8960, 30, 16), 825),
}


@pytest.mark.parametrize("size", SIZES)
def test_the_full_size_dit_has_the_published_names_and_shapes(size):
    config, sizes, count = SIZES[size]
    published = published_dit(*sizes)
    assert len(published) == count
    with torch.device("meta"):
        shapes = shapes_of(config.build().state_dict())
    assert shapes == {n: s for n, s in published.items() if not n.startswith(TEXT_EMBEDDING)}


@pytest.mark.parametrize("size", SIZES)
def test_every_full_size_name_round_trips_through_diffusers(size):
    published = published_dit(*SIZES[size][1])
    diffusers = {dit_to_diffusers(name) for name in published}
    assert len(diffusers) == len(published)
    assert {dit_from_diffusers(name) for name in diffusers} == published.keys()


def test_diffusers_names_are_those_of_its_class():
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        diffusers_dit = WanTransformer3DModel(
            num_attention_heads=24, attention_head_dim=128, in_channels=48, out_channels=48, ffn_dim=14336,
            num_layers=30,
        )  # fmt: skip
    shapes = {dit_from_diffusers(name): shape for name, shape in shapes_of(diffusers_dit.state_dict()).items()}
    assert shapes == published_dit(3072, 14336, 30, 48)


def test_queries_connectors_and_embedders_have_the_published_names_and_shapes():
    dit = DiTConfig()
    with torch.device("meta"):
        modules = {"query": QueryConnector().build(2048, dit.dim), "latent": LatentConnector().build(2048, dit.dim)}
        modules |= {"source": AddSource().build(dit), "reference": AppendReference().build(dit)}
    shapes = shapes_of(torch.nn.ModuleDict(modules).state_dict())
    shapes = {to_published(name): shape for name, shape in shapes.items()}
    connector = {"0.weight": (3072, 2048), "0.bias": (3072,), "2.weight": (3072, 3072), "2.bias": (3072,)}
    expected = {f"mllm.{c}.{n}": s for c in ("connetor", "ref_connector") for n, s in connector.items()}
    expected |= {f"mllm.{m}_queries.q": (n, 2048) for m, n in (("image", 256), ("video", 512), ("ref", 768))}
    for embedder in ("vae_condition", "ref_vae_condition"):
        expected |= {f"{embedder}.patch_embedding.weight": (3072, 48, 1, 2, 2)}
        expected |= {f"{embedder}.patch_embedding.bias": (3072,)}
    assert shapes == expected
    assert {to_published(from_published(name)) for name in expected} == expected.keys()


def test_the_14b_dits_adapters_have_the_published_names_and_shapes():
    with torch.device("meta"):
        dit = DiTConfig.wan21_14b().replace(tuning=Lora(rank=128)).build()
    shapes = {to_published(f"dit.{n}"): s for n, s in shapes_of(dit.state_dict()).items() if is_adapter(n)}
    layers = {f"{attention}.{x}": (5120, 5120) for attention in ("self_attn", "cross_attn") for x in "qkvo"}
    layers |= {"ffn.0": (5120, 13824), "ffn.2": (13824, 5120)}
    expected = {}
    for name, (into, out) in {f"dit.blocks.{i}.{layer}": layers[layer] for i in range(40) for layer in layers}.items():
        expected |= {f"{name}.lora_A.default.weight": (128, into), f"{name}.lora_B.default.weight": (out, 128)}
    assert shapes == expected


def test_the_name_of_an_mllm_adapter_round_trips_to_the_published_name():
    published = "mllm.model.model.language_model.layers.3.self_attn.q_proj.lora_A.default.weight"
    assert from_published(published) == published.replace("model.model.", "model.")
    assert to_published(from_published(published)) == published


@pytest.mark.parametrize("prefix", ["pipe.{part}.", "{part}."])
def test_names_of_a_training_checkpoint_may_have_or_lack_the_prefix_pipe(prefix):
    names = ["dit.blocks.0.ffn.0.weight", "vae_condition.patch_embedding.bias", "mllm.connetor.0.bias"]
    published = [prefix.format(part=name.split(".")[0]) + name.split(".", 1)[1] for name in names]
    assert list(strip_checkpoint_prefixes(published).values()) == names


def test_dit_names_without_prefix_get_it_back_even_if_other_parts_have_theirs():
    published = ["blocks.0.ffn.0.weight", "patch_embedding.bias", "pipe.mllm.connetor.0.bias", "pipe.vae_condition.x"]
    expected = ["dit.blocks.0.ffn.0.weight", "dit.patch_embedding.bias", "mllm.connetor.0.bias", "vae_condition.x"]
    assert list(strip_checkpoint_prefixes(published).values()) == expected
