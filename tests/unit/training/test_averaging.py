import pytest
import torch
from torch import nn

from kiwi.errors import CheckpointError, SpecError
from kiwi.training.averaging import Ema, NoAveraging


@pytest.fixture
def layer():
    return nn.Linear(3, 2)


def shapes(layer):
    return {name: parameter.shape for name, parameter in layer.named_parameters()}


def test_the_average_follows_its_definition(layer):
    average, decay = Ema(decay=0.5).build(), 0.5
    expected = None
    for step in range(20):
        with torch.no_grad():
            layer.weight.copy_(torch.full((2, 3), float(step)))
        average.update(layer.named_parameters())
        current_decay = min(decay, (1 + step) / (10 + step))
        expected = 0.0 if expected is None else current_decay * expected + (1 - current_decay) * step
    assert average.values["weight"][0, 0].item() == pytest.approx(expected, rel=1e-6)
    assert 17 < expected < 19


def test_the_average_replaces_the_weights_only_inside_the_block_even_if_that_fails(layer):
    average = Ema(decay=0.9).build()
    average.update(layer.named_parameters())
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(1.0)

    def apply_and_fail():
        with average.applied(layer.named_parameters()):
            assert torch.equal(layer.weight, before)
            raise RuntimeError("inside the block")

    with pytest.raises(RuntimeError, match="inside the block"):
        apply_and_fail()
    assert torch.equal(layer.weight, before + 1.0)


def test_the_average_of_bf16_weights_is_float32(layer):
    layer.bfloat16()
    average = Ema(decay=0.999).build()
    for _ in range(3):
        average.update(layer.named_parameters())
    assert average.values["weight"].dtype == torch.float32
    with average.applied(layer.named_parameters()):
        assert layer.weight.dtype == torch.bfloat16


def test_an_average_resumes_from_its_state(layer):
    average = Ema(decay=0.9).build()
    average.update(layer.named_parameters())
    resumed = Ema(decay=0.9).build()
    resumed.load_state_dict(average.state_dict(), shapes(layer))
    for updated in (average, resumed):
        with torch.no_grad():
            layer.weight.fill_(3.0)
        updated.update(layer.named_parameters())
    assert torch.equal(average.values["weight"], resumed.values["weight"])
    assert resumed.updates == 2


@pytest.mark.parametrize("state", [{}, {"updates": 1, "values": {"weight": torch.zeros(2, 3)}}])
def test_an_average_of_other_parameters_is_rejected(layer, state):
    with pytest.raises(CheckpointError, check=lambda error: error.code == "mismatched-average"):
        Ema().build().load_state_dict(state, shapes(layer))


def test_a_run_without_averaging_rejects_a_checkpoint_with_an_average(layer):
    average = Ema().build()
    average.update(layer.named_parameters())
    with pytest.raises(CheckpointError, check=lambda error: error.code == "mismatched-average"):
        NoAveraging().build().load_state_dict(average.state_dict(), shapes(layer))


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_outside_its_range_is_rejected(decay):
    with pytest.raises(SpecError, match="decay"):
        Ema(decay=decay)
