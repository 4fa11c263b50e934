import pytest
import torch

from kiwi.errors import SpecError
from kiwi.spec import from_dict
from kiwi.training.loss_weighting import ChangeWeighted, LossWeighting, Uniform


def latents(changed):
    """Targets that differ from their sources by one standard deviation in the first columns of every frame."""
    source = torch.randn(2, 3, 2, 4, 8)
    target = source.clone()
    target[..., :changed] += 1.0
    return target, source


def test_uniform_weights_are_all_one():
    target, source = latents(2)
    assert torch.equal(Uniform().weights(target, source), torch.ones(2, 1, 2, 4, 8))


@pytest.mark.parametrize("changed", [1, 4, 8])
def test_changed_positions_have_larger_weights_and_every_sample_has_mean_weight_one(changed):
    target, source = latents(changed)
    weights = ChangeWeighted(factor=8.0, half=0.1).weights(target, source)
    assert weights.mean(dim=(1, 2, 3, 4)) == pytest.approx(torch.ones(2))
    if changed < 8:
        # A squared difference of 1 is 10/11 of the way from 1 to 8.
        ratio = weights[..., :changed].mean() / weights[..., changed:].mean()
        assert float(ratio) == pytest.approx(1 + 7 / 1.1, rel=1e-5)
    else:
        assert torch.allclose(weights, torch.ones_like(weights))


def test_a_factor_of_one_is_uniform():
    target, source = latents(3)
    assert torch.allclose(ChangeWeighted(factor=1.0).weights(target, source), torch.ones(2, 1, 2, 4, 8))


@pytest.mark.parametrize("settings", [{"factor": 0.5}, {"half": 0.0}])
def test_settings_that_would_lower_the_weight_of_changes_are_rejected(settings):
    with pytest.raises(SpecError, check=lambda error: error.code == "out-of-range"):
        ChangeWeighted(**settings)


@pytest.mark.parametrize(("former", "current"), [("Even", Uniform()), ("OnChanges", ChangeWeighted())])
def test_the_names_of_the_previous_release_are_still_read(former, current):
    assert from_dict(LossWeighting, {"type": former}) == current
