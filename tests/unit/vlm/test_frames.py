import numpy as np
import pytest

from kiwi.errors import InputError
from kiwi.media.image import read_image
from kiwi.media.video import write_video
from kiwi.vlm.frames import FrameSampling, encode_image


@pytest.fixture
def clip(tmp_path):
    """Two seconds at 10 fps; the frame at time t has the grey value 100 t."""
    frames = np.stack([np.full((32, 64, 3), 10 * index, np.uint8) for index in range(20)])
    write_video(tmp_path / "clip.mp4", frames, 10, crf=0)
    return tmp_path / "clip.mp4"


@pytest.mark.parametrize(
    ("sampling", "times"),
    [
        (FrameSampling(fps=1), (0, 1)),
        (FrameSampling(fps=2), (0, 0.5, 1, 1.5)),
        (FrameSampling(fps=100), tuple(index / 10 for index in range(20))),
        (FrameSampling(fps=100, max_frames=4), (0, 0.5, 1, 1.5)),
        (FrameSampling(max_frames=1), (0,)),
    ],
)
def test_frames_have_a_constant_rate_that_the_clip_and_the_maximum_bound(clip, sampling, times):
    sampled = sampling.sample(clip)
    assert sampled.times == pytest.approx(times)
    assert np.abs(sampled.frames_FHWC[:, 0, 0, 0] - 100.0 * np.array(times)).max() < 2


def test_large_frames_are_scaled_down_and_keep_their_shape(clip):
    assert FrameSampling(max_pixels=512).sample(clip).frames_FHWC.shape[1:3] == (16, 32)
    assert FrameSampling(max_pixels=10**6).sample(clip).frames_FHWC.shape[1:3] == (32, 64)


def test_the_digest_depends_on_pixels_and_times(clip):
    digests = {FrameSampling(fps=fps, max_pixels=size).sample(clip).digest for fps in (1, 2) for size in (512, 2048)}
    assert len(digests) == 4
    assert FrameSampling(fps=1).sample(clip).digest == FrameSampling(fps=1).sample(clip).digest


@pytest.mark.parametrize("changes", [{"fps": 0}, {"fps": float("nan")}, {"max_frames": 0}, {"max_pixels": -1}])
def test_sampling_that_yields_nothing_is_rejected(changes):
    with pytest.raises(InputError, check=lambda error: error.code == "out-of-range"):
        FrameSampling(**changes)


def test_images_are_encoded_without_loss_as_png():
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    assert np.array_equal(read_image(encode_image(image, "png")), image)
    smooth = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    assert np.abs(read_image(encode_image(smooth, "jpeg")).astype(int) - smooth).max() <= 3
