import pytest
import torch

from kiwi.errors import CheckpointError
from kiwi.weights.strict import compare_shapes, fingerprint, load_strict


def test_missing_and_unexpected_names_and_wrong_shapes_are_reported():
    module = torch.nn.Linear(3, 2)
    with pytest.raises(CheckpointError, check=lambda error: error.code == "mismatched-weights") as caught:
        load_strict(module, {"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}, "x.safetensors")
    message = str(caught.value)
    assert "1 missing (bias)" in message
    assert "1 unexpected (extra)" in message
    assert "weight is (2, 4), not (2, 3)" in message
    assert "x.safetensors" in message


def test_nothing_is_loaded_if_anything_does_not_match():
    module = torch.nn.Linear(3, 2)
    before = module.weight.clone()
    with pytest.raises(CheckpointError):
        load_strict(module, {"weight": torch.zeros(2, 3)}, "x")
    assert torch.equal(module.weight, before)


def test_long_lists_are_shortened_and_counted():
    message = str(compare_shapes({}, {f"t{i:02d}": (1,) for i in range(25)}))
    assert message == "25 unexpected (" + ", ".join(f"t{i:02d}" for i in range(10)) + ", ...)"


def test_assigned_tensors_keep_their_dtype_and_frozen_parameters_stay_frozen():
    with torch.device("meta"):
        module = torch.nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    load_strict(module, {"weight": torch.ones(2, 3).bfloat16(), "bias": torch.ones(2)}, "x", assign=True)
    assert (module.weight.dtype, module.bias.dtype) == (torch.bfloat16, torch.float32)
    assert module.weight.requires_grad
    assert not module.bias.requires_grad


def test_a_fingerprint_depends_on_names_shapes_and_values_but_not_on_order_or_dtype():
    state = {"a": torch.randn(100, 30), "b": torch.randn(3).bfloat16()}
    same = {"b": state["b"].float(), "a": state["a"].clone()}
    assert fingerprint(state) == fingerprint(same)
    for name in state:
        other = {**state, name: state[name] + 0.1}
        assert fingerprint(other) != fingerprint(state)
    assert fingerprint({"a": state["a"], "c": state["b"]}) != fingerprint(state)
    assert fingerprint({**state, "a": state["a"].reshape(30, 100)}) != fingerprint(state)
