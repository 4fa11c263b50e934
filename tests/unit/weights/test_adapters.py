import pytest
import torch

from kiwi.errors import CheckpointError
from kiwi.weights.adapters import merge_adapters, rank_and_targets, with_base_layer, without_base_layer


def adapters(layer="x.q", rank=2, out=3, into=4):
    return {
        f"{layer}.lora_A.default.weight": torch.randn(rank, into),
        f"{layer}.lora_B.default.weight": torch.randn(out, rank),
    }


def test_merging_is_the_weight_plus_b_times_a():
    weights, own = {"x.q.weight": torch.randn(3, 4), "x.q.bias": torch.randn(3)}, adapters()
    merged = merge_adapters(weights, own)
    product = own["x.q.lora_B.default.weight"] @ own["x.q.lora_A.default.weight"]
    assert torch.allclose(merged["x.q.weight"], weights["x.q.weight"] + product, atol=1e-6)
    assert torch.equal(merged["x.q.bias"], weights["x.q.bias"])
    assert merge_adapters({n: t.bfloat16() for n, t in weights.items()}, own)["x.q.weight"].dtype == torch.bfloat16


def test_an_update_smaller_than_what_bf16_tells_apart_is_not_lost_before_the_sum():
    """B A is rounded once, with the sum."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, generator=generator).bfloat16()
    own = {f"x.{n}": t for n, t in adapters("q", rank=8, out=64, into=64).items()}
    merged = merge_adapters({"x.q.weight": weight}, own)["x.q.weight"]
    b, a = (own[f"x.q.lora_{n}.default.weight"].double() for n in "BA")
    wanted = (weight.double() + b @ a).bfloat16()
    assert (merged != wanted).double().mean() < 1e-3  # anything in bf16 before the sum makes a quarter differ


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda own: own.pop("x.q.lora_A.default.weight"), r"no x\.q\.lora_A\.default\.weight"),
        (lambda own: own.pop("x.q.lora_B.default.weight"), r"no x\.q\.lora_B\.default\.weight"),
        (lambda own: own.update({"x.q.lora_A.mine.weight": torch.ones(2, 4)}), r"x\.q\.lora_A\.mine.*not peft's"),
        (lambda own: own.update({"x.q.lora_A.default.weight": torch.ones(())}), r"lora_A.*shape \(\)"),
        (lambda own: own.update({"x.q.lora_B.default.weight": torch.ones(2)}), r"lora_B.*shape \(2,\)"),
    ],
)
def test_what_is_no_whole_adapter_is_refused_by_name(spoil, told):
    own, weights = adapters(), {"x.q.weight": torch.randn(3, 4)}
    spoil(own)
    for use in (merge_adapters, rank_and_targets):
        with pytest.raises(CheckpointError, match=told):
            use(weights, own)


def test_an_adapter_without_a_weight_is_refused():
    with pytest.raises(CheckpointError, match="no such weight"):
        merge_adapters({"x.k.weight": torch.randn(3, 4)}, adapters())


def test_an_adapter_of_another_shape_is_refused():
    with pytest.raises(CheckpointError, match=r"A \(2, 4\), B \(3, 2\), weight \(3, 5\)"):
        merge_adapters({"x.q.weight": torch.randn(3, 5)}, adapters())


def test_rank_and_targets_are_read_off_the_names():
    own = adapters("b.0.self_attn.q") | adapters("b.0.ffn.2") | adapters("b.1.ffn.2")
    weights = {f"{name.split('.lora')[0]}.weight": torch.ones(3, 4) for name in own}
    weights |= {"b.0.norm_q.weight": torch.ones(3), "b.1.k.weight": torch.ones(3, 4)}
    assert rank_and_targets(weights, own) == (2, ("ffn.2", "q"))
    for more, told in (
        (adapters("b.1.k", rank=5), r"ranks \[2, 5\]"),
        (adapters("v.1.z"), r"v\.1\.z"),
    ):
        with pytest.raises(CheckpointError, match=f"cannot be kept.*{told}.*--adapters merge"):
            rank_and_targets(weights, own | more)
    with pytest.raises(CheckpointError, match=r"none for b\.1\.self_attn\.q\..*--adapters merge"):
        rank_and_targets(weights | {"b.1.self_attn.q.weight": torch.ones(3, 4)}, own)


def test_names_beside_and_without_adapters():
    own = adapters("b.q")
    assert with_base_layer("b.q.bias", own) == "b.q.base_layer.bias"
    assert with_base_layer("b.k.bias", own) == "b.k.bias"
    assert without_base_layer("b.q.base_layer.bias") == "b.q.bias"
