import pytest
import torch

from kiwi.training.source_check import BlindPredictors

SIGMAS = torch.tensor([0.2, 0.5, 0.9, 1.0])


def losses(training, validation):
    blind = BlindPredictors()
    blind.add_training(training)
    blind.add_validation(validation)
    return blind.compute_losses(SIGMAS)


def white_latents_loss(sigma):
    """Lowest loss on independent latents of variance 1."""
    return 1 / ((1 - sigma) ** 2 + sigma**2)


def test_the_loss_equals_that_of_least_squares_on_unseen_data():
    """Least squares with random noise is fitted to one half of the samples, and evaluated on the other."""
    torch.manual_seed(0)
    mixing = torch.randn(4, 4, dtype=torch.float64)
    x0 = torch.randn(400_000, 4, dtype=torch.float64) @ mixing.T + 0.5
    x0_BCFHW = x0.reshape(-1, 1, 20, 20, 4).permute(0, 4, 1, 2, 3)
    half = len(x0_BCFHW) // 2
    loss_S = losses(x0_BCFHW[:half], x0_BCFHW[half:])
    for sigma, loss in zip(SIGMAS.tolist(), loss_S.tolist(), strict=True):
        noise = torch.randn_like(x0)
        features = torch.cat(((1 - sigma) * x0 + sigma * noise, torch.ones(len(x0), 1, dtype=torch.float64)), dim=1)
        target = noise - x0
        coefficients = torch.linalg.lstsq(features[: len(x0) // 2], target[: len(x0) // 2]).solution
        least_squares_loss = float((features[len(x0) // 2 :] @ coefficients - target[len(x0) // 2 :]).square().mean())
        assert loss == pytest.approx(least_squares_loss, rel=0.02)


def test_white_latents_have_the_closed_form():
    loss_S = losses(torch.randn(64, 2, 1, 24, 24), torch.randn(64, 2, 1, 24, 24))
    assert torch.allclose(loss_S, white_latents_loss(SIGMAS.double()), rtol=0.02)


def test_repeated_frames_lower_the_loss():
    """With three equal frames, one eigenvector in three has variance 3, and the others have variance 0."""
    training, validation = (torch.randn(64, 2, 1, 24, 24).expand(-1, -1, 3, -1, -1) for _ in range(2))
    expected = [3 / ((1 - s) ** 2 * 3 + s**2) / 3 for s in SIGMAS.tolist()]
    assert torch.allclose(losses(training, validation), torch.tensor(expected, dtype=torch.float64), rtol=0.03)


def test_similar_neighbouring_positions_lower_the_loss():
    smooth = [torch.nn.functional.avg_pool2d(torch.randn(32, 2, 27, 27), 4, 1)[:, :, None] * 4 for _ in range(2)]
    assert losses(*smooth)[1] < 0.7 * white_latents_loss(0.5)


def test_few_training_clips_do_not_lower_the_loss_on_validation_clips():
    """A covariance of higher dimension than the number of blocks must not lower the loss by overfitting."""
    loss_S = losses(torch.randn(1, 16, 1, 6, 6), torch.randn(8, 16, 1, 6, 6))
    assert (loss_S > 0.9 * white_latents_loss(SIGMAS.double())).all()


def test_clip_lengths_are_weighted_by_their_samples_and_each_needs_training_targets():
    blind = BlindPredictors()
    for add in (blind.add_training, blind.add_validation):
        add(torch.randn(48, 2, 1, 16, 16))
        add(torch.ones(16, 2, 3, 16, 16))
    assert float(blind.compute_losses(SIGMAS)[1]) == pytest.approx(0.75 * white_latents_loss(0.5), rel=0.03)
    blind.add_validation(torch.randn(1, 2, 2, 16, 16))
    assert blind.compute_losses(SIGMAS) is None


def test_validation_targets_of_two_processes_add_up():
    clips = torch.randn(8, 2, 1, 16, 16)
    predictors = [BlindPredictors(), BlindPredictors()]
    for predictor, half in zip(predictors, (clips[:3], clips[3:]), strict=True):
        predictor.add_training(clips)
        predictor.add_validation(half)
    predictors[0].merge(predictors[1])
    assert torch.allclose(predictors[0].compute_losses(SIGMAS), losses(clips, clips))
