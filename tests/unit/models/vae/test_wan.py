from pathlib import Path

import pytest
import torch

from kiwi.encoded import LatentDistribution
from kiwi.errors import CheckpointError, InputError, SpecError
from kiwi.models.vae.tiling import NoTiling, Tiling
from kiwi.models.vae.wan import NewVae, WanVae
from kiwi.parity.cases import CASES
from kiwi.parity.golden import compare_case, load_case

GOLDEN = Path(__file__).parents[3] / "golden"


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return NewVae(z_dim=4, base_dim=4).build().eval()


@pytest.mark.parametrize(("frames", "latent"), [(1, 1), (5, 2), (9, 3)])
def test_shapes_follow_the_downsampling_factors(vae, frames, latent):
    with torch.no_grad():
        latents = vae.encode(torch.rand(1, 3, frames, 16, 24))
        assert latents.shape == (1, 4, latent, 4, 6)
        assert vae.decode(latents).shape == (1, 3, frames, 16, 24)


def test_the_wan22_architecture_has_twice_the_spatial_factor():
    vae = NewVae(z_dim=4, base_dim=4, dim_mult=(1, 2, 2), residual=True).build()
    with torch.no_grad():
        latents = vae.encode(torch.rand(1, 3, 5, 32, 32))
    assert latents.shape == (1, 4, 2, 4, 4)
    assert vae.spatial_factor == 8


@pytest.mark.parametrize("shape", [(1, 3, 4, 16, 16), (1, 3, 5, 18, 16)])
def test_videos_that_would_lose_frames_or_rows_are_rejected(vae, shape):
    for encode in (vae.encode, vae.posterior):
        with pytest.raises(InputError, check=lambda error: error.code == "unsupported-video-size"):
            encode(torch.rand(shape))


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
    fresh.set_normalisation(raw.mean((0, 2, 3, 4)), raw.std((0, 2, 3, 4)))
    fresh.save(tmp_path / "vae")
    loaded = WanVae(path=str(tmp_path / "vae")).build().eval()
    with torch.no_grad():
        latents = loaded.encode(video)
        assert latents.mean((0, 2, 3, 4)).abs().max() < 1e-4
        assert torch.allclose(latents.std((0, 2, 3, 4)), torch.ones(4), atol=1e-3)
        assert torch.allclose(loaded.decode(latents), vae.decode(raw), atol=1e-4)


def test_a_folder_without_a_vae_is_rejected_and_named(tmp_path):
    with pytest.raises(
        CheckpointError, match=str(tmp_path / "none"), check=lambda error: error.code == "missing-model"
    ):
        WanVae(path=str(tmp_path / "none")).build()
    with pytest.raises(CheckpointError, match=f"{tmp_path} must contain exactly one set of weights"):
        WanVae(path=str(tmp_path)).build()


@pytest.mark.parametrize("name", ["vae_wan21", "vae_wan22"])
def test_outputs_equal_those_of_the_published_code_with_and_without_tiles(name):
    verdict = compare_case(load_case(GOLDEN / f"{name}.json"), CASES[name])
    assert len(verdict.differences) == 6
    for name, difference in verdict.differences.items():
        assert difference <= (1e-5 if name.startswith("decode") else 2e-6), name


def test_the_posterior_is_the_one_of_the_diffusers_vae_after_normalisation(vae):
    video = torch.rand(1, 3, 5, 16, 16)
    latent_mean, latent_std = torch.arange(4.0), torch.tensor([0.5, 1.0, 2.0, 4.0])
    scaled = NewVae(z_dim=4, base_dim=4).build()
    scaled.load_state_dict(vae.state_dict())
    scaled.set_normalisation(latent_mean, latent_std)
    with torch.no_grad():
        theirs, ours = vae.vae.encode(video).latent_dist, scaled.posterior(video)
        assert torch.equal(scaled.encode(video), ours.mode())
    latent_mean, latent_std = latent_mean[:, None, None, None], latent_std[:, None, None, None]
    assert torch.allclose(ours.mean * latent_std + latent_mean, theirs.mean, atol=1e-5)
    assert torch.allclose(ours.std * latent_std, theirs.std, rtol=1e-5)
    noise = torch.randn_like(ours.mean)
    assert torch.equal(ours.sample(torch.zeros_like(noise)), ours.mode())
    assert torch.allclose(ours.sample(noise) * latent_std + latent_mean, theirs.mean + theirs.std * noise, atol=1e-4)


def test_samples_have_the_posteriors_mean_and_standard_deviation():
    posterior = LatentDistribution(torch.full((1, 1, 1, 100, 100), 3.0), torch.full((1, 1, 1, 100, 100), 0.5))
    samples = posterior.sample(torch.randn(1, 1, 1, 100, 100))
    assert samples.mean() == pytest.approx(3.0, abs=0.02)
    assert samples.std() == pytest.approx(0.5, abs=0.02)


def test_no_more_than_four_frames_are_encoded_or_one_latent_decoded_at_a_time(vae, monkeypatch):
    lengths = {"encoder": [], "decoder": []}
    for name, frames in lengths.items():
        network = getattr(vae.vae, name)
        forward = network.forward
        monkeypatch.setattr(
            network, "forward", lambda x, f=forward, n=frames, **more: (n.append(x.shape[2]), f(x, **more))[1]
        )
    with torch.no_grad():
        vae.decode(vae.encode(torch.rand(1, 3, 9, 16, 16)))
    assert lengths == {"encoder": [1, 4, 4], "decoder": [1, 1, 1]}


def test_latent_statistics_are_float32_whatever_the_weights_dtype_and_not_in_the_state_dict():
    vae = NewVae(z_dim=4, base_dim=4).build()
    names = vae.state_dict().keys()
    vae.set_normalisation(torch.full((4,), 1.001), torch.full((4,), 3.003))
    vae.to(torch.bfloat16)
    assert vae.state_dict().keys() == names
    assert torch.equal(vae.denormalise(torch.ones(1, 4, 1, 1, 1)).flatten(), torch.full((4,), 1.001) + 3.003)
    with torch.no_grad():
        posterior = vae.posterior(torch.rand(1, 3, 1, 16, 16))
        assert (posterior.mean.dtype, posterior.std.dtype) == (torch.float32, torch.float32)
        assert vae.decode(posterior.mode()).dtype == torch.float32


def test_tiling_is_set_in_the_spec_and_may_be_changed_on_the_module():
    tiling = Tiling(size=(3, 3), stride=(2, 2))
    vae = NewVae(z_dim=4, base_dim=4, tiling=tiling).build()
    for parameter in vae.parameters():  # large weights, so that tiles change the result
        torch.nn.init.normal_(parameter, std=0.3)
    assert vae.tiling == tiling
    assert NewVae(base_dim=4).build().tiling == NoTiling()
    video, latents = torch.rand(1, 3, 5, 20, 20), torch.randn(1, 4, 2, 5, 5)

    def results(tiling):
        vae.tiling = tiling
        with torch.no_grad():
            return (*vae.posterior(video), vae.decode(latents))

    tiled, whole, one_tile = map(results, (tiling, NoTiling(), Tiling(size=(5, 5), stride=(1, 1))))
    for in_tiles, at_once, in_one_tile in zip(tiled, whole, one_tile, strict=True):
        assert in_tiles.shape == at_once.shape
        assert (in_tiles - at_once).abs().max() > 1e-3
        assert torch.equal(in_one_tile, at_once)


def test_tiles_are_blended_before_they_are_clamped(vae, monkeypatch):
    monkeypatch.setattr(vae, "tiling", Tiling(size=(1, 2), stride=(1, 1)))
    values = iter((3.0, -1.0))
    monkeypatch.setattr(vae, "decode_unclamped", lambda x: torch.full((1, 3, 1, 4, 4 * x.shape[-1]), next(values)))
    row = vae.decode(torch.zeros(1, 4, 1, 1, 3))[0, 0, 0, 0]
    # Overlap of 4 pixels: weights (1, .75, .5, .25) of 3 and (.25, .5, .75, 1) of -1.
    blended = torch.tensor([(3 - 0.25) / 1.25, (2.25 - 0.5) / 1.25, (1.5 - 0.75) / 1.25, (0.75 - 1) / 1.25])
    assert torch.allclose(row[4:8], blended.clamp(-1, 1))
    assert row[:4].tolist() == [1.0] * 4


def test_the_decoder_may_have_its_own_width():
    narrow, wide = NewVae(base_dim=4).build(), NewVae(base_dim=4, decoder_base_dim=12).build()
    assert narrow.vae.decoder.conv_out.in_channels == 4
    assert (wide.vae.decoder.conv_out.in_channels, wide.vae.encoder.conv_in.out_channels) == (12, 4)


@pytest.mark.parametrize(("preset", "channels", "factor"), [("wan21", 16, 8), ("wan22", 48, 16)])
def test_the_presets_can_be_built_on_the_meta_device(preset, channels, factor):
    with torch.device("meta"):
        vae = getattr(NewVae, preset)().build()
    assert {tensor.device.type for tensor in vae.state_dict().values()} == {"meta"}
    assert (vae.channels, vae.spatial_factor, vae.fingerprint) == (channels, factor, "")


@pytest.mark.parametrize("temporal", [(True,), (True, False), (True, True, True)])
def test_levels_that_do_not_halve_time_twice_are_rejected(temporal):
    with pytest.raises(SpecError, match="two of them true"):
        NewVae(temporal_downsample=temporal)


@pytest.mark.parametrize(
    "sizes",
    [{"residual": True}, *({"residual": True, "dim_mult": widths} for widths in ((1, 3, 3), (16, 1, 1), (1, 16, 16)))]
    + [{name: 0} for name in ("z_dim", "base_dim", "decoder_base_dim", "num_res_blocks")]
    + [{"base_dim": 1}, {"dim_mult": (1, 0, 4)}, {"dim_mult": ()}],
)
def test_invalid_sizes_are_rejected(sizes):
    with pytest.raises(SpecError, match=r"autoencoder's"):
        NewVae(**sizes)


@pytest.mark.parametrize("widths", [(1, 2, 2), (1, 8, 8), (2, 1, 1), (4, 8, 4), (1, 4, 2)])
def test_every_accepted_residual_width_can_be_built(widths):
    with torch.device("meta"):
        vae = NewVae(base_dim=4, dim_mult=widths, residual=True).build()
    assert any(parameter.shape[0] == 4 * widths[-1] for parameter in vae.parameters())
