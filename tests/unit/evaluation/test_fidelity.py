import functools
import math

import lpips
import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from kiwi.errors import InputError
from kiwi.evaluation.fidelity import PSNR_CAP, Lpips, clip_psnr, compute_edit_metrics


@pytest.fixture
def random_lpips(monkeypatch):
    """Give LPIPS a random backbone, so that nothing is downloaded."""
    monkeypatch.setattr(lpips, "LPIPS", functools.partial(lpips.LPIPS, pnet_rand=True))


def noise(seed, frames=2, height=32, width=32):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def left_half(frames=2, height=32, width=32):
    mask = np.zeros((frames, height, width), bool)
    mask[:, :, : width // 2] = True
    return mask


def psnr_of(squared_error):
    return 10 * math.log10(255**2 / squared_error)


def test_psnr_inside_and_outside_the_mask_are_separate():
    target = np.full((3, 16, 16, 3), 100, np.uint8)
    mask = np.zeros((3, 16, 16), bool)
    mask[:, :4, :4] = True  # a sixteenth
    edited = np.full_like(target, 103)
    edited[mask] = 110
    metrics = compute_edit_metrics(edited, target, mask)
    assert metrics["psnr_inside"] == pytest.approx(psnr_of(100), abs=1e-4)
    assert metrics["psnr_outside"] == pytest.approx(psnr_of(9), abs=1e-4)
    assert metrics["psnr"] == pytest.approx(psnr_of(100 / 16 + 9 * 15 / 16), abs=1e-4)


def test_psnr_is_the_mean_over_frames_with_pixels_on_that_side_of_the_mask():
    target, edited = np.full((2, 16, 16, 3), 100, np.uint8), np.full((2, 16, 16, 3), 110, np.uint8)
    edited[1] = 120
    mask = np.zeros((2, 16, 16), bool)
    mask[0] = True
    metrics = compute_edit_metrics(edited, target, mask)
    assert metrics["psnr"] == pytest.approx((psnr_of(100) + psnr_of(400)) / 2, abs=1e-4)
    assert metrics["psnr_inside"] == pytest.approx(psnr_of(100), abs=1e-4)
    assert metrics["psnr_outside"] == pytest.approx(psnr_of(400), abs=1e-4)


def test_psnr_of_a_clip_is_over_all_its_pixels_and_not_the_mean_over_frames():
    target, edited = np.full((2, 16, 16, 3), 100, np.uint8), np.full((2, 16, 16, 3), 110, np.uint8)
    edited[1] = 120
    assert clip_psnr(edited, target, np.ones((2, 16, 16), bool)) == pytest.approx(psnr_of((100 + 400) / 2), abs=1e-4)
    assert clip_psnr(target, target, np.ones((2, 16, 16), bool)) == PSNR_CAP
    assert math.isnan(clip_psnr(edited, target, np.zeros((2, 16, 16), bool)))


@pytest.mark.parametrize(
    ("mask", "sides"),
    [(None, {""}), (np.zeros((2, 32, 32), bool), {"", "_outside"}), (np.ones((2, 32, 32), bool), {"", "_inside"})],
)
def test_a_side_without_pixels_is_absent(mask, sides):
    metrics = compute_edit_metrics(noise(0), noise(1), mask)
    assert metrics.keys() == {f"{name}{side}" for name in ("psnr", "ssim") for side in sides}


def test_identical_frames_have_a_finite_psnr(random_lpips):
    metrics = compute_edit_metrics(noise(0), noise(0), left_half(), Lpips().build())
    assert {metrics[f"psnr{side}"] for side in ("", "_inside", "_outside")} == {PSNR_CAP}
    assert {round(metrics[f"ssim{side}"], 5) for side in ("", "_inside", "_outside")} == {1.0}
    assert {metrics[f"lpips{side}"] for side in ("", "_inside", "_outside")} == {0.0}
    # A PSNR above the cap: one of the 3072 values of each frame differs by one level.
    nearly_equal = noise(0)
    nearly_equal[:, 0, 0, 0] ^= 1
    assert compute_edit_metrics(nearly_equal, noise(0))["psnr"] == PSNR_CAP


def test_ssim_of_whole_frames_is_that_of_torchmetrics_and_the_mean_of_its_sides():
    edited, target = (noise(0) // 2 + noise(1) // 2), noise(1)
    edited[:, :, :16] = target[:, :, :16]
    pair = (torch.from_numpy(frames).movedim(-1, 1).double() for frames in (edited, target))
    metrics = compute_edit_metrics(edited, target, left_half())
    assert metrics["ssim"] == pytest.approx(
        float(structural_similarity_index_measure(*pair, data_range=255.0)), abs=1e-4
    )
    assert metrics["ssim"] == pytest.approx((metrics["ssim_inside"] + metrics["ssim_outside"]) / 2, abs=1e-5)
    assert metrics["ssim_inside"] > 0.9 > metrics["ssim_outside"]


def test_lpips_of_whole_frames_is_that_of_the_package_and_the_mean_of_its_sides(random_lpips):
    """At 32 x 32 pixels, all feature maps of VGG are enlarged by integer factors, which keeps their means."""
    edited, target = noise(0, frames=1), noise(1, frames=1)
    edited[:, :, :16] = target[:, :, :16]
    metrics = compute_edit_metrics(edited, target, left_half(1), Lpips(net="vgg").build())
    whole = lpips.LPIPS(net="vgg", verbose=False).requires_grad_(False)
    whole.load_state_dict(_network(Lpips(net="vgg")).state_dict())
    pair = (torch.from_numpy(frames).movedim(-1, 1).float() / 127.5 - 1 for frames in (edited, target))
    assert metrics["lpips"] == pytest.approx(float(whole(*pair)), rel=1e-4)
    assert metrics["lpips"] == pytest.approx((metrics["lpips_inside"] + metrics["lpips_outside"]) / 2, rel=1e-4)
    assert 0 < metrics["lpips_inside"] < metrics["lpips_outside"]


def _network(spec):
    """The network of a built metric."""
    (cell,) = (c.cell_contents for c in spec.build().__closure__ if isinstance(c.cell_contents, torch.nn.Module))
    return cell


def test_building_lpips_does_not_change_the_global_generator(random_lpips):
    before = torch.random.get_rng_state()
    Lpips().build()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("damaged", [False, True])
def test_missing_or_damaged_weights_are_rejected_with_url_and_path(monkeypatch, tmp_path, damaged):
    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    path = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    if damaged:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"junk" * 100)
    with pytest.raises(InputError) as caught:
        Lpips().build()
    assert caught.value.code == "missing-weights"
    assert ("could not be loaded" if damaged else "could not be downloaded (no network)") in str(caught.value)
    assert f"download https://download.pytorch.org/models/alexnet-owt-7be5be79.pth to {path}" in str(caught.value)
