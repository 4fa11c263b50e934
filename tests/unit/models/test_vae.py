import pytest
import torch

from kiwi.errors import CheckpointError, InputError
from kiwi.models.vae import NewVae, WanVae


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return NewVae(z_dim=4, base_dim=4).build().eval()


@pytest.mark.parametrize(("frames", "latent"), [(1, 1), (5, 2), (9, 3)])
def test_shapes_follow_the_factors(vae, frames, latent):
    with torch.no_grad():
        latents = vae.encode(torch.rand(1, 3, frames, 16, 24))
        assert latents.shape == (1, 4, latent, 4, 6)
        assert vae.latent_frames(frames) == latent
        assert vae.decode(latents).shape == (1, 3, frames, 16, 24)


def test_the_wan22_form_halves_once_more():
    vae = NewVae(z_dim=4, base_dim=4, dim_mult=(1, 2, 2), residual=True).build()
    with torch.no_grad():
        latents = vae.encode(torch.rand(1, 3, 5, 32, 32))
    assert latents.shape == (1, 4, 2, 4, 4)
    assert vae.spatial_factor == 8


@pytest.mark.parametrize("shape", [(1, 3, 4, 16, 16), (1, 3, 5, 18, 16)])
def test_videos_that_would_lose_frames_or_rows_are_refused(vae, shape):
    with pytest.raises(InputError, match=r"4k \+ 1 frames"):
        vae.encode(torch.rand(shape))


def test_images_are_encoded_one_by_one(vae):
    images = torch.rand(2, 3, 3, 16, 16)
    with torch.no_grad():
        latents = vae.encode_images(images)
        assert latents.shape == (2, 4, 3, 4, 4)
        assert torch.allclose(latents[1, :, 2], vae.encode(images[1:, 2, :, None])[0, :, 0], atol=1e-6)
        assert vae.encode_images(images[:, :0]).shape == (2, 4, 0, 4, 4)


def test_normalisation_survives_saving(vae, tmp_path):
    video = torch.rand(2, 3, 5, 16, 16)
    with torch.no_grad():
        raw = vae.encode(video)
    fresh = NewVae(z_dim=4, base_dim=4).build().eval()
    fresh.load_state_dict(vae.state_dict())
    fresh.normalise_by(raw.mean((0, 2, 3, 4)), raw.std((0, 2, 3, 4)))
    fresh.save(tmp_path / "vae")
    loaded = WanVae(path=str(tmp_path / "vae")).build().eval()
    with torch.no_grad():
        latents = loaded.encode(video)
        assert latents.mean((0, 2, 3, 4)).abs().max() < 1e-4
        assert torch.allclose(latents.std((0, 2, 3, 4)), torch.ones(4), atol=1e-3)
        assert torch.allclose(loaded.decode(latents), vae.decode(raw), atol=1e-4)


def test_a_folder_without_a_vae_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=f"no VAE at {tmp_path}"):
        WanVae(path=str(tmp_path)).build()
