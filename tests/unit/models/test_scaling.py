import pytest
import torch

from kiwi.errors import SpecError
from kiwi.flow.schedule import FlowSchedule
from kiwi.models.scaling import ConstantScale, FunctionScale, LearnableScale, SigmaScale

SIGMAS = torch.cat((FlowSchedule().sigmas(1000), torch.rand(100)))


@pytest.mark.parametrize("spec", [SigmaScale(), LearnableScale(), LearnableScale(bins=1000), FunctionScale()])
def test_the_initial_gamma_is_exactly_sigma(spec):
    assert torch.equal(spec.build()(SIGMAS), SIGMAS)


def test_a_constant_is_the_same_at_every_noise_level():
    assert torch.equal(ConstantScale(value=0.25).build()(SIGMAS), torch.full_like(SIGMAS, 0.25))


@pytest.mark.parametrize("spec", [LearnableScale(bins=8), FunctionScale(width=16)])
def test_a_learnable_gamma_can_fit_a_curve(spec):
    torch.manual_seed(0)
    gamma = spec.build()
    target = 1 - SIGMAS + 0.3 * torch.sin(3 * SIGMAS)
    optimizer = torch.optim.Adam(gamma.parameters(), lr=0.03)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (gamma(SIGMAS) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 1e-3
    assert (gamma(SIGMAS) - SIGMAS).abs().max() > 0.5


def test_each_scalar_changes_gamma_only_around_its_noise_level():
    gamma = LearnableScale(bins=5).build()
    gamma.offset.data[2] = 1.0
    assert torch.allclose(
        gamma(torch.tensor([0.0, 0.25, 0.375, 0.5, 0.75, 1.0])), torch.tensor([0.0, 0.25, 0.875, 1.5, 0.75, 1.0])
    )


@pytest.mark.parametrize("spec", [SigmaScale(), LearnableScale(), FunctionScale(), ConstantScale(value=1 / 3)])
def test_the_noise_level_is_not_rounded_when_the_model_is_in_bf16(spec):
    gamma = spec.build().bfloat16()
    expected = SIGMAS if not isinstance(spec, ConstantScale) else torch.full_like(SIGMAS, 1 / 3)
    assert torch.equal(gamma(SIGMAS), expected)


@pytest.mark.parametrize("spec", [LearnableScale(bins=7), FunctionScale()])
def test_gamma_under_autocast_is_exactly_gamma_in_float32(spec):
    gamma = spec.build()
    for parameter in gamma.parameters():
        torch.nn.init.normal_(parameter)
    expected = gamma(SIGMAS)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = gamma(SIGMAS)
    assert torch.equal(autocast, expected)
    assert (expected - SIGMAS).abs().max() > 0.1


def test_values_out_of_range_are_rejected():
    with pytest.raises(SpecError, match="2 bins"):
        LearnableScale(bins=1)
    with pytest.raises(SpecError, match="width"):
        FunctionScale(width=0)
