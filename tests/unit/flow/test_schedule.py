import pytest
import torch

from kiwi.errors import SpecError
from kiwi.flow.schedule import FlowSchedule, add_noise, find_nearest_index, velocity_loss, velocity_target


def test_the_grid_decreases_from_pure_noise_to_zero():
    sigmas = FlowSchedule().sigmas(50)
    assert len(sigmas) == 51
    assert (sigmas[0], sigmas[-1]) == (1.0, 0.0)
    assert (sigmas.diff() < 0).all()


def test_shift_one_is_linear_and_shift_five_matches_the_formula():
    s = torch.linspace(0, 1, 11)
    assert torch.allclose(FlowSchedule(shift=1.0).sigma(s), s)
    assert float(FlowSchedule(shift=5.0).sigma(torch.tensor(0.5))) == pytest.approx(2.5 / 3)


def test_loss_weights_have_mean_one_peak_in_the_middle_and_vanish_at_pure_noise():
    schedule = FlowSchedule()
    table = schedule.sigmas(1000)[:-1]
    weights = schedule.loss_weight(table)
    assert float(weights.mean()) == pytest.approx(1.0, abs=1e-5)
    assert float(weights[0]) == 0.0
    assert float(table[weights.argmax()]) == pytest.approx(0.5, abs=0.01)


def test_even_weights_are_one_at_every_noise_level_and_leave_the_schedule_unchanged():
    schedule = FlowSchedule(weighting="even")
    assert torch.equal(schedule.loss_weight(torch.linspace(0, 1, 11)), torch.ones(11))
    assert torch.equal(schedule.sigmas(10), FlowSchedule().sigmas(10))


def test_the_nearest_index_is_the_first_on_ties():
    assert find_nearest_index(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2.5, 0.0])).tolist() == [0, 2]


@pytest.mark.parametrize(
    "wrong",
    [{"shift": 0.0}, {"shift": -1.0}, {"shift": float("nan")}, {"shift": float("inf")}, {"num_train_timesteps": 0}],
)
def test_schedules_out_of_range_are_rejected(wrong):
    with pytest.raises(SpecError, check=lambda error: error.code == "out-of-range"):
        FlowSchedule(**wrong)


def test_a_grid_towards_sigma_min_has_the_diffusers_pipelines_spacing_and_still_closes_at_zero():
    end = 0.003 / 1.002
    sigmas = FlowSchedule().sigmas(4, sigma_min=end)
    positions = torch.tensor([1.0, 0.75 + end / 4, 0.5 + end / 2, 0.25 + 3 * end / 4, 0.0])
    assert torch.allclose(sigmas, FlowSchedule().sigma(positions), atol=1e-6)
    assert sigmas[-1] == 0.0


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 4, "strength": 0.0}, {"steps": 4, "sigma_min": 1.0}])
def test_grids_out_of_range_are_rejected(wrong):
    with pytest.raises(SpecError, check=lambda error: error.code == "out-of-range"):
        FlowSchedule().sigmas(**wrong)


def test_noise_is_added_with_each_samples_own_sigma():
    x0, noise = torch.randn(2, 3, 1, 2, 2), torch.randn(2, 3, 1, 2, 2)
    noisy = add_noise(x0, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(noisy[0], x0[0])
    assert torch.equal(noisy[1], noise[1])


def test_following_the_velocity_to_sigma_zero_gives_the_clean_latents():
    x0, noise, sigma = torch.randn(1, 3, 4), torch.randn(1, 3, 4), torch.tensor([0.7])
    clean = add_noise(x0, noise, sigma) - 0.7 * velocity_target(x0, noise)
    assert torch.allclose(clean, x0, atol=1e-6)


def test_loss_is_a_mean_over_each_sample_in_float32():
    prediction, target = torch.zeros(2, 4, dtype=torch.bfloat16), torch.tensor([[1.0] * 4, [2.0] * 4])
    assert velocity_loss(prediction, target).tolist() == [1.0, 4.0]
    assert velocity_loss(prediction, target).dtype == torch.float32
