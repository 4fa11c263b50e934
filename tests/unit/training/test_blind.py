import pytest
import torch

from kiwi.training.source_check import BlindPredictors

SIGMAS = torch.tensor([0.2, 0.5, 0.9, 1.0])


def losses(training, validation):
    blind = BlindPredictors()
    blind.add_training(training)
    blind.add_validation(validation)
    return blind.losses(SIGMAS)


def white(sigma):
    """The least loss on independent latents of variance 1."""
    return 1 / ((1 - sigma) ** 2 + sigma**2)


def test_the_loss_is_that_of_least_squares_on_new_data():
    """Correlated channels: fitted to one half of the samples with random noise, measured on the other."""
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
        rule = torch.linalg.lstsq(features[: len(x0) // 2], target[: len(x0) // 2]).solution
        reached = float((features[len(x0) // 2 :] @ rule - target[len(x0) // 2 :]).square().mean())
        assert loss == pytest.approx(reached, rel=0.02)


def test_white_latents_have_the_closed_form():
    loss_S = losses(torch.randn(64, 2, 1, 24, 24), torch.randn(64, 2, 1, 24, 24))
    assert torch.allclose(loss_S, white(SIGMAS.double()), rtol=0.02)


def test_repeated_frames_are_exploited():
    """Three equal frames: one direction in three holds variance 3, the others none."""
    training, validation = (torch.randn(64, 2, 1, 24, 24).expand(-1, -1, 3, -1, -1) for _ in range(2))
    expected = [3 / ((1 - s) ** 2 * 3 + s**2) / 3 for s in SIGMAS.tolist()]
    assert torch.allclose(losses(training, validation), torch.tensor(expected, dtype=torch.float64), rtol=0.03)


def test_similar_neighbours_are_exploited():
    smooth = [torch.nn.functional.avg_pool2d(torch.randn(32, 2, 27, 27), 4, 1)[:, :, None] * 4 for _ in range(2)]
    assert losses(*smooth)[1] < 0.7 * white(0.5)


def test_few_training_clips_do_not_lower_the_loss_on_validation_clips():
    """A covariance of more numbers than blocks must not look like knowledge of the data."""
    loss_S = losses(torch.randn(1, 16, 1, 6, 6), torch.randn(8, 16, 1, 6, 6))
    assert (loss_S > 0.9 * white(SIGMAS.double())).all()


def test_clip_lengths_are_weighed_by_their_samples_and_must_be_in_the_training_targets():
    blind = BlindPredictors()
    for add in (blind.add_training, blind.add_validation):
        add(torch.randn(48, 2, 1, 16, 16))
        add(torch.ones(16, 2, 3, 16, 16))
    assert float(blind.losses(SIGMAS)[1]) == pytest.approx(0.75 * white(0.5), rel=0.03)
    blind.add_validation(torch.randn(1, 2, 2, 16, 16))
    assert blind.losses(SIGMAS) is None


def test_validation_targets_of_two_processes_add_up():
    clips = torch.randn(8, 2, 1, 16, 16)
    parts = [BlindPredictors(), BlindPredictors()]
    for part, half in zip(parts, (clips[:3], clips[3:]), strict=True):
        part.add_training(clips)
        part.add_validation(half)
    parts[0].merge(parts[1])
    assert torch.allclose(parts[0].losses(SIGMAS), losses(clips, clips))
