import pytest
import torch

from kiwi.errors import CheckpointError
from kiwi.weights.adapters import merge, rank_and_targets, with_base_layer, without_base_layer


def adapters(layer="x.q", rank=2, out=3, into=4):
    return {
        f"{layer}.lora_A.default.weight": torch.randn(rank, into),
        f"{layer}.lora_B.default.weight": torch.randn(out, rank),
    }


def test_merging_is_the_weight_plus_b_times_a():
    weights, own = {"x.q.weight": torch.randn(3, 4), "x.q.bias": torch.randn(3)}, adapters()
    merged = merge(weights, own)
    product = own["x.q.lora_B.default.weight"] @ own["x.q.lora_A.default.weight"]
    assert torch.allclose(merged["x.q.weight"], weights["x.q.weight"] + product, atol=1e-6)
    assert torch.equal(merged["x.q.bias"], weights["x.q.bias"])
    assert merge({n: t.bfloat16() for n, t in weights.items()}, own)["x.q.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_half_an_adapter_and_one_without_a_weight_are_refused(half):
    own = {name: tensor for name, tensor in adapters().items() if half in name}
    with pytest.raises(CheckpointError, match="cannot be merged"):
        merge({"x.q.weight": torch.randn(3, 4)}, own)
    with pytest.raises(CheckpointError, match="no such weight"):
        merge({"x.k.weight": torch.randn(3, 4)}, adapters())


def test_an_adapter_of_another_shape_is_refused():
    with pytest.raises(CheckpointError, match=r"A \(2, 4\), B \(3, 2\), weight \(3, 5\)"):
        merge({"x.q.weight": torch.randn(3, 5)}, adapters())


def test_rank_and_targets_are_read_off_the_names():
    own = adapters("b.0.self_attn.q") | adapters("b.0.ffn.2") | adapters("b.1.ffn.2")
    assert rank_and_targets(own) == (2, ("ffn.2", "q"))
    with pytest.raises(CheckpointError, match="one rank"):
        rank_and_targets(own | adapters("b.1.k", rank=5))


def test_names_beside_and_without_adapters():
    own = adapters("b.q")
    assert with_base_layer("b.q.bias", own) == "b.q.base_layer.bias"
    assert with_base_layer("b.k.bias", own) == "b.k.bias"
    assert without_base_layer("b.q.base_layer.bias") == "b.q.bias"
