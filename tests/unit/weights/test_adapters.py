import pytest
import torch

from kiwi.errors import CheckpointError
from kiwi.weights.adapters import infer_rank_and_targets, merge_adapters, with_base_layer, without_base_layer


def adapters(layer="x.q", rank=2, out_features=3, in_features=4):
    a, b = torch.randn(rank, in_features), torch.randn(out_features, rank)
    return {f"{layer}.lora_A.default.weight": a, f"{layer}.lora_B.default.weight": b}


def test_merging_is_the_weight_plus_b_times_a():
    weights, lora = {"x.q.weight": torch.randn(3, 4), "x.q.bias": torch.randn(3)}, adapters()
    merged = merge_adapters(weights, lora)
    product = lora["x.q.lora_B.default.weight"] @ lora["x.q.lora_A.default.weight"]
    assert torch.allclose(merged["x.q.weight"], weights["x.q.weight"] + product, atol=1e-6)
    assert torch.equal(merged["x.q.bias"], weights["x.q.bias"])
    assert merge_adapters({n: t.bfloat16() for n, t in weights.items()}, lora)["x.q.weight"].dtype == torch.bfloat16


def test_the_product_is_not_rounded_to_bf16_before_the_sum():
    """W + B A is rounded only once."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, generator=generator).bfloat16()
    lora = {f"x.{n}": t for n, t in adapters("q", rank=8, out_features=64, in_features=64).items()}
    merged = merge_adapters({"x.q.weight": weight}, lora)["x.q.weight"]
    b, a = (lora[f"x.q.lora_{n}.default.weight"].double() for n in "BA")
    expected = (weight.double() + b @ a).bfloat16()
    # Rounding to bf16 before the sum would change a quarter of the values.
    assert (merged != expected).double().mean() < 1e-3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lora: lora.pop("x.q.lora_A.default.weight"), r"no x\.q\.lora_A\.default\.weight"),
        (lambda lora: lora.pop("x.q.lora_B.default.weight"), r"no x\.q\.lora_B\.default\.weight"),
        (lambda lora: lora.update({"x.q.lora_A.mine.weight": torch.ones(2, 4)}), r"x\.q\.lora_A\.mine"),
        (lambda lora: lora.update({"x.q.lora_A.default.weight": torch.ones(())}), r"lora_A.*shape \(\)"),
        (lambda lora: lora.update({"x.q.lora_B.default.weight": torch.ones(2)}), r"lora_B.*shape \(2,\)"),
    ],
)
def test_an_invalid_adapter_tensor_is_named_in_the_error(damage, message):
    lora, weights = adapters(), {"x.q.weight": torch.randn(3, 4)}
    damage(lora)
    for function in (merge_adapters, infer_rank_and_targets):
        with pytest.raises(CheckpointError, match=message, check=lambda error: error.code == "invalid-adapter"):
            function(weights, lora)


def test_an_adapter_without_a_weight_is_rejected():
    with pytest.raises(CheckpointError, match=r"x\.q\.weight", check=lambda error: error.code == "mismatched-adapter"):
        merge_adapters({"x.k.weight": torch.randn(3, 4)}, adapters())


def test_an_adapter_of_another_shape_is_rejected():
    with pytest.raises(CheckpointError, match=r"A \(2, 4\), B \(3, 2\), weight \(3, 5\)"):
        merge_adapters({"x.q.weight": torch.randn(3, 5)}, adapters())


def test_rank_and_targets_are_inferred_from_the_names():
    lora = adapters("b.0.self_attn.q") | adapters("b.0.ffn.2") | adapters("b.1.ffn.2")
    weights = {f"{name.split('.lora')[0]}.weight": torch.ones(3, 4) for name in lora}
    weights |= {"b.0.norm_q.weight": torch.ones(3), "b.1.k.weight": torch.ones(3, 4)}
    assert infer_rank_and_targets(weights, lora) == (2, ("ffn.2", "q"))
    for more, message in ((adapters("b.1.k", rank=5), r"ranks \[2, 5\]"), (adapters("v.1.z"), r"v\.1\.z")):
        with pytest.raises(CheckpointError, match=f"{message}.*--adapters merge"):
            infer_rank_and_targets(weights, lora | more)


def test_targets_are_as_long_as_needed_to_leave_out_layers_without_an_adapter():
    lora = adapters("b.0.self_attn.q") | adapters("b.1.self_attn.q") | adapters("b.1.ffn.2")
    weights = {f"{name.split('.lora')[0]}.weight": torch.ones(3, 4) for name in lora}
    weights |= {f"b.{block}.cross_attn.q.weight": torch.ones(3, 4) for block in (0, 1)}
    assert infer_rank_and_targets(weights, lora)[1] == ("ffn.2", "self_attn.q")
    weights["b.0.ffn.2.weight"] = torch.ones(3, 4)
    assert infer_rank_and_targets(weights, lora)[1] == ("1.ffn.2", "self_attn.q")


def test_names_with_and_without_adapters():
    lora = adapters("b.q")
    assert with_base_layer("b.q.bias", lora) == "b.q.base_layer.bias"
    assert with_base_layer("b.k.bias", lora) == "b.k.bias"
    assert without_base_layer("b.q.base_layer.bias") == "b.q.bias"
