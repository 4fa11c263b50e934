import pytest
import torch

from kiwi.training.source_check import SIGMAS, SourceCheck


def test_means_are_over_samples_and_noise_levels():
    check = SourceCheck()
    check.blind_predictors.add_training(torch.randn(2, 3, 1, 4, 4))
    levels = torch.linspace(0, 1, len(SIGMAS))
    check.add("video", torch.randn(2, 3, 1, 4, 4), levels.expand(2, -1), levels.expand(2, -1) + 1)
    check.add("image", torch.randn(1, 3, 1, 4, 4), levels.expand(1, -1) + 3, None)
    summary = check.summarize()
    assert summary["loss"] == pytest.approx(0.5 + 1)
    assert (summary["loss_video"], summary["loss_image"]) == pytest.approx((0.5, 3.5))
    assert summary["loss_swapped"] == pytest.approx(1.5)
    assert summary[f"loss_at_{SIGMAS[-1]:g}"] == pytest.approx(2.0)
    levels_blind = [summary[f"loss_blind_at_{sigma:g}"] for sigma in SIGMAS]
    assert summary["loss_blind"] == pytest.approx(sum(levels_blind) / len(SIGMAS))


def test_losses_that_cannot_be_computed_are_absent():
    check = SourceCheck()
    assert check.summarize() == {}
    check.add("video", torch.randn(1, 3, 1, 4, 4), torch.ones(1, len(SIGMAS)), None)
    assert not {"loss_swapped", "loss_blind"} & check.summarize().keys()
