import torch

from kiwi.flow.objective import add_noise, velocity_loss, velocity_target


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
