import pytest
import torch

from kiwi.training.source_check import SIGMAS, SourceCheck


def test_means_are_over_samples_and_noise_levels():
    check = SourceCheck()
    levels = torch.linspace(0, 1, len(SIGMAS))
    check.add(torch.randn(2, 3, 1, 4, 4), levels.expand(2, -1), levels.expand(2, -1) + 1)
    check.add(torch.randn(1, 3, 1, 4, 4), levels.expand(1, -1) + 3, None)
    found = check.summary()
    assert found["loss"] == pytest.approx(0.5 + 1)
    assert found["loss_swapped"] == pytest.approx(1.5)
    assert found[f"loss_at_{SIGMAS[-1]:g}"] == pytest.approx(2.0)


def test_the_blind_loss_knows_the_covariance_of_patches():
    """White latents: variance 1 everywhere gives the closed form 1 / ((1 - s)^2 + s^2)."""
    check = SourceCheck()
    zeros = torch.zeros(64, len(SIGMAS))
    check.add(torch.randn(64, 2, 1, 24, 24), zeros, None)
    for sigma in SIGMAS:
        expected = 1 / ((1 - sigma) ** 2 + sigma**2)
        assert check.summary()[f"loss_blind_at_{sigma:g}"] == pytest.approx(expected, rel=0.02)


def test_constant_latents_need_no_source():
    check = SourceCheck()
    check.add(torch.ones(4, 2, 1, 4, 4), torch.zeros(4, len(SIGMAS)), None)
    assert check.summary()["loss_blind"] == pytest.approx(0.0, abs=1e-9)


def test_nothing_seen_says_nothing():
    assert SourceCheck().summary() == {}


def test_the_blind_predictor_knows_that_a_still_background_repeats_in_time():
    """Three equal latent frames: averaging them is as good as a third of the noise variance."""
    check = SourceCheck()
    still = torch.randn(64, 2, 1, 24, 24).expand(-1, -1, 3, -1, -1)
    check.add(still, torch.zeros(64, len(SIGMAS)), None)
    for sigma in SIGMAS:
        # One direction in three holds variance 3, the other two none.
        expected = 3 / ((1 - sigma) ** 2 * 3 + sigma**2) / 3
        assert check.summary()[f"loss_blind_at_{sigma:g}"] == pytest.approx(expected, rel=0.03)


def test_clips_of_different_length_are_weighed_by_their_number():
    check = SourceCheck()
    check.add(torch.randn(48, 2, 1, 16, 16), torch.zeros(48, len(SIGMAS)), None)
    check.add(torch.ones(16, 2, 3, 16, 16), torch.zeros(16, len(SIGMAS)), None)
    sigma = SIGMAS[3]
    white = 1 / ((1 - sigma) ** 2 + sigma**2)
    assert check.summary()[f"loss_blind_at_{sigma:g}"] == pytest.approx(0.75 * white, rel=0.03)
