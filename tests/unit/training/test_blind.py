import pytest
import torch

from kiwi.training.blind import BlindPredictors

SIGMAS = torch.tensor([0.2, 0.5, 0.9, 1.0])


def told(known, met):
    blind = BlindPredictors()
    blind.learn(known)
    blind.meet(met)
    return blind.losses(SIGMAS)


def white(sigma):
    """The least loss on latents of variance 1 that have nothing to do with one another."""
    return 1 / ((1 - sigma) ** 2 + sigma**2)


def test_it_is_what_least_squares_reaches_on_fresh_data():
    """Correlated channels: fitted on one half of the samples with noise drawn, measured on the other."""
    torch.manual_seed(0)
    mixing = torch.randn(4, 4, dtype=torch.float64)
    x0 = torch.randn(400_000, 4, dtype=torch.float64) @ mixing.T + 0.5
    x0_BCFHW = x0.reshape(-1, 1, 20, 20, 4).permute(0, 4, 1, 2, 3)
    half = len(x0_BCFHW) // 2
    loss_S = told(x0_BCFHW[:half], x0_BCFHW[half:])
    for sigma, loss in zip(SIGMAS.tolist(), loss_S.tolist(), strict=True):
        noise = torch.randn_like(x0)
        seen = torch.cat(((1 - sigma) * x0 + sigma * noise, torch.ones(len(x0), 1, dtype=torch.float64)), dim=1)
        target = noise - x0
        rule = torch.linalg.lstsq(seen[: len(x0) // 2], target[: len(x0) // 2]).solution
        reached = float((seen[len(x0) // 2 :] @ rule - target[len(x0) // 2 :]).square().mean())
        assert loss == pytest.approx(reached, rel=0.02)


def test_nothing_to_exploit_leaves_the_closed_form():
    loss_S = told(torch.randn(64, 2, 1, 24, 24), torch.randn(64, 2, 1, 24, 24))
    assert torch.allclose(loss_S, white(SIGMAS.double()), rtol=0.02)


def test_it_knows_that_a_still_clip_repeats_in_time():
    """Three equal frames: one direction in three holds variance 3, the others none."""
    known, met = (torch.randn(64, 2, 1, 24, 24).expand(-1, -1, 3, -1, -1) for _ in range(2))
    expected = [3 / ((1 - s) ** 2 * 3 + s**2) / 3 for s in SIGMAS.tolist()]
    assert torch.allclose(told(known, met), torch.tensor(expected, dtype=torch.float64), rtol=0.03)


def test_it_knows_that_neighbours_are_alike():
    smooth = [torch.nn.functional.avg_pool2d(torch.randn(32, 2, 27, 27), 4, 1)[:, :, None] * 4 for _ in range(2)]
    assert told(*smooth)[1] < 0.7 * white(0.5)


def test_few_training_clips_do_not_make_it_know_the_validation_clips():
    """A covariance of more numbers than blocks must not look like knowledge of the data."""
    loss_S = told(torch.randn(1, 16, 1, 6, 6), torch.randn(8, 16, 1, 6, 6))
    assert (loss_S > 0.9 * white(SIGMAS.double())).all()


def test_lengths_are_weighed_by_their_samples_and_must_be_known():
    blind = BlindPredictors()
    for take in (blind.learn, blind.meet):
        take(torch.randn(48, 2, 1, 16, 16))
        take(torch.ones(16, 2, 3, 16, 16))
    assert float(blind.losses(SIGMAS)[1]) == pytest.approx(0.75 * white(0.5), rel=0.03)
    blind.meet(torch.randn(1, 2, 2, 16, 16))
    assert blind.losses(SIGMAS) is None


def test_what_two_processes_met_adds_up():
    clips = torch.randn(8, 2, 1, 16, 16)
    parts = [BlindPredictors(), BlindPredictors()]
    for part, half in zip(parts, (clips[:3], clips[3:]), strict=True):
        part.learn(clips)
        part.meet(half)
    parts[0].merge(parts[1])
    assert torch.allclose(parts[0].losses(SIGMAS), told(clips, clips))
