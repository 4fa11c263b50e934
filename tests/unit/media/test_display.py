"""Videos and images are read as players display them, whatever their container, pixels, timestamps and suffix."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

from kiwi.errors import MediaError
from kiwi.media import image
from kiwi.media.image import read_image
from kiwi.media.video import probe, read_video, write_video
from tests.conftest import CASES

from .conftest import Encoder, frame_numbers, numbered_frames


def read_consistently(path: Path) -> np.ndarray:
    """The frames of a video, after checking that `probe` agrees with them."""
    video, info = read_video(path), probe(path)
    assert (info.frames, info.height, info.width, info.fps) == (*video.frames_FHWC.shape[:3], video.fps)
    return video.frames_FHWC


# --- time -----------------------------------------------------------------------------------------


def test_a_variable_rate_keeps_its_duration_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    frames_FHWC = read_consistently(CASES / "vfr.mkv")
    assert len(frames_FHWC) == 60  # 2.0 s at the 30 fps of the second half
    assert "variable frame rate" in caplog.text
    assert "vfr.mkv" in caplog.text


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.webm", "clip.mov", "clip.ts", "clip.nut"])
def test_each_frame_of_a_variable_rate_is_shown_as_long_as_its_timestamps_say(encode: Encoder, name: str) -> None:
    times = [0, 1, 2, 3, 4, 9, 10, 11, 12, 20, 21, 22]  # in 1/24 s
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    path = encode(name, numbered_frames(12), codec=codec, times=times, codec_options={"bf": "0"})
    expected = [max(k for k in range(12) if times[k] <= i) for i in range(23)]
    numbers = frame_numbers(read_consistently(path))
    assert numbers == expected


def test_a_header_with_a_wrong_rate_is_corrected_by_the_timestamps(encode: Encoder) -> None:
    path = encode("clip.mkv", numbered_frames(20), fps=30, times=[3 * k for k in range(20)])
    video = read_video(path)
    assert (video.fps, video.frame_count) == (10, 20)


@pytest.mark.parametrize(("name", "codec"), [("clip.h264", "libx264"), ("clip.m2v", "mpeg2video")])
def test_a_stream_without_a_container_has_the_rate_that_its_codec_states(
    encode: Encoder, name: str, codec: str
) -> None:
    path = encode(name, numbered_frames(12), codec=codec, fps=30)
    assert (read_video(path).fps, len(read_consistently(path))) == (30, 12)


def test_timestamps_with_an_absurd_gap_are_damage(encode: Encoder) -> None:
    path = encode("clip.mkv", numbered_frames(4), times=[0, 1, 2, 10**6])
    with pytest.raises(MediaError, check=lambda error: error.code == "damaged-video"):
        read_video(path)


# --- pixels ---------------------------------------------------------------------------------------


def encode_with_pixel_aspect(path: Path, ratio: Fraction) -> Path:
    """A clip of 48 x 32 stored pixels with a pixel aspect ratio."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv444p"
        stream.codec_context.sample_aspect_ratio = ratio
        for pixels in numbered_frames(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_pixels_that_are_not_square_are_displayed_in_their_shape() -> None:
    assert read_consistently(CASES / "sar43.mp4").shape[1:3] == (96, 213)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
@pytest.mark.parametrize(("ratio", "size"), [("2/1", (32, 96)), ("1/2", (64, 48)), ("64/45", (32, 68))])
def test_one_side_grows_with_the_pixel_aspect_ratio(
    tmp_path: Path, name: str, ratio: str, size: tuple[int, int]
) -> None:
    path = encode_with_pixel_aspect(tmp_path / name, Fraction(ratio))
    frames_FHWC = read_consistently(path)
    assert frames_FHWC.shape[1:3] == size
    assert frame_numbers(frames_FHWC) == list(range(5))


def test_an_impossible_pixel_aspect_ratio_is_ignored(tmp_path: Path) -> None:
    path = encode_with_pixel_aspect(tmp_path / "clip.mp4", Fraction(1000))
    assert read_consistently(path).shape[1:3] == (32, 48)


def test_the_default_stream_is_read() -> None:
    assert read_consistently(CASES / "two_streams.mp4").shape == (10, 96, 160, 3)


def test_transparency_of_webm_is_composited_on_white() -> None:
    frames_FHWC = read_consistently(CASES / "alpha.webm")
    assert (frames_FHWC[:, 8:-8, 8:72] == 255).all()
    assert frames_FHWC[:, :, 88:].mean() < 240


@pytest.mark.parametrize(("name", "word"), [("hdr10.mp4", "HDR"), ("interlaced.mp4", "interlaced")])
def test_hdr_and_interlaced_videos_are_named_in_a_warning(
    caplog: pytest.LogCaptureFixture, name: str, word: str
) -> None:
    read_consistently(CASES / name)
    assert word in caplog.text
    assert name in caplog.text


# --- images and animations ------------------------------------------------------------------------


def make_animation(path: Path, kind: str, durations: list[int], **options: Any) -> Path:
    frames = [Image.fromarray(pixels) for pixels in numbered_frames(len(durations))]
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options)
    return path


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".png", ".mp4"])
@pytest.mark.parametrize(("kind", "options"), [("WEBP", {"lossless": True}), ("GIF", {}), ("PNG", {})])
def test_an_animated_image_is_a_clip_whatever_its_suffix(tmp_path: Path, suffix: str, kind: str, options: dict) -> None:
    path = make_animation(tmp_path / f"clip{suffix}", kind, [100] * 8, **options)
    assert frame_numbers(read_consistently(path)) == list(range(8))
    assert read_video(path).fps == 10
    assert frame_numbers(read_video(path, start=2, max_frames=3).frames_FHWC) == [2, 3, 4]


def test_an_animation_with_uneven_durations_is_resampled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_animation(tmp_path / "clip.webp", "WEBP", [100, 300, 100, 100], lossless=True)
    assert frame_numbers(read_consistently(path)) == [0, 1, 1, 1, 2, 3]
    assert "variable frame rate" in caplog.text


def test_an_animated_webp_file_has_all_its_frames() -> None:
    assert read_consistently(CASES / "anim.webp").shape == (12, 96, 160, 3)


def test_a_still_image_with_the_suffix_of_a_video_is_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), (200, 30, 40)).save(tmp_path / "still.mp4", "PNG")
    assert read_consistently(tmp_path / "still.mp4").shape == (1, 10, 20, 3)


def test_a_video_with_the_suffix_of_an_image_is_a_video(encode: Encoder) -> None:
    path = encode("clip.mp4", numbered_frames(9))
    moved = path.rename(path.with_name("clip.png"))
    assert frame_numbers(read_consistently(moved)) == list(range(9))


def test_pages_of_a_tiff_are_not_frames(tmp_path: Path) -> None:
    pages = [Image.fromarray(pixels) for pixels in numbered_frames(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert len(read_consistently(tmp_path / "pages.tif")) == 1


def test_the_first_frame_of_an_animated_reference_image_is_used_with_a_warning(tmp_path: Path, caplog) -> None:
    path = make_animation(tmp_path / "reference.gif", "GIF", [100] * 3)
    assert frame_numbers(read_image(path)[None]) == [0]
    assert "animation of 3 frames" in caplog.text


def test_an_embedded_colour_profile_is_converted_to_srgb() -> None:
    pixels = read_image(CASES / "p3.png")[10, [10, 30, 50]].astype(int)
    assert np.abs(pixels - [(217, 42, 23), (0, 183, 49), (34, 61, 208)]).max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA"])
def test_a_profile_of_srgb_changes_no_pixel(tmp_path: Path, mode: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(numbered_frames(1)[0]).convert(mode)
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "profiled.png", icc_profile=profile)
    difference = read_image(tmp_path / "plain.png").astype(int) - read_image(tmp_path / "profiled.png")
    assert np.abs(difference).max() == 0


def test_a_damaged_colour_profile_is_ignored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (8, 8), (200, 60, 40)).save(tmp_path / "image.png", icc_profile=b"no profile")
    assert (read_image(tmp_path / "image.png") == (200, 60, 40)).all()
    assert "colour profile" in caplog.text


def test_heic_images_are_read(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    read_image(CASES / "p3.png")  # registers the readers
    Image.new("RGB", (64, 32), (200, 60, 40)).save(tmp_path / "photo.heic", quality=100)
    assert np.abs(read_consistently(tmp_path / "photo.heic").astype(int) - (200, 60, 40)).max() <= 8


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"heix"])
def test_a_heic_image_is_an_error_that_says_so_if_its_package_is_missing(
    tmp_path: Path, brand: bytes, monkeypatch
) -> None:
    monkeypatch.setattr(image, "_FORMATS", tuple(name for name in image._FORMATS if name != "HEIF"))
    path = tmp_path / "photo.jpg"
    path.write_bytes(struct.pack(">I", 24) + b"ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(100))
    for read in (read_image, read_video, probe):
        with pytest.raises(MediaError, match="HEIC", check=lambda error: error.code == "unsupported-image"):
            read(path)


# --- containers that name other files -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\n{target}\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\n{target}\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile '{target}'\n"),
        ("list.mp4", "ffconcat version 1.0\nfile '{target}'\n"),
        ("clip.sdp", "v=0\nm=video 5004 RTP/AVP 96\n"),
        ("list.mpd", '<?xml version="1.0"?><MPD><Period><BaseURL>{target}</BaseURL></Period></MPD>'),
    ],
)
def test_playlists_are_not_videos(encode: Encoder, tmp_path: Path, name: str, text: str) -> None:
    secret = encode("secret.mp4", numbered_frames(5))
    folder = tmp_path / "data"
    folder.mkdir()
    for target in (secret, Path("../secret.mp4"), Path("secret.mp4")):
        (folder / name).write_text(text.format(target=target))
        for read in (read_video, probe):
            with pytest.raises(MediaError, check=lambda error: error.code == "unreadable-video"):
                read(folder / name)


def test_patterns_of_image_files_are_not_videos(tmp_path: Path) -> None:
    for index in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"p{index}.ppm")
    for name in ("p%d.ppm", "p*.ppm"):
        for read in (read_video, probe):
            with pytest.raises(MediaError, check=lambda error: error.code == "missing-file"):
                read(tmp_path / name)
    (tmp_path / "p%d.ppm").write_bytes((tmp_path / "p1.ppm").read_bytes())
    assert read_video(tmp_path / "p%d.ppm").frame_count == 1


# --- writing and reading are inverse --------------------------------------------------------------


def edge_position(frame_HWC: np.ndarray, signal: Callable[[np.ndarray], np.ndarray], axis: int) -> float:
    """Where the mean of a signal crosses the middle between its two ends, in pixels."""
    profile = signal(frame_HWC.astype(float)).mean(axis=1 - axis)
    low, high = profile[:20].mean(), profile[-20:].mean()
    after = int(np.argmax(profile > (low + high) / 2))
    step = profile[after] - profile[after - 1]
    return after - 0.5 + ((low + high) / 2 - profile[after - 1]) / step


SIGNALS = {"luma": lambda rgb: rgb @ (0.2126, 0.7152, 0.0722), "chroma": lambda rgb: rgb[..., 2] - rgb[..., 0]}
COLOURS = {"luma": ((60, 60, 60), (180, 180, 180)), "chroma": ((150, 100, 90), (90, 100, 150))}


@pytest.mark.parametrize("size", [128, 320, 720])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", ["luma", "chroma"])
def test_edges_stay_where_they_are_over_four_generations(tmp_path: Path, size: int, axis: int, kind: str) -> None:
    for offset in (0, 1):  # chroma samples stand on every second pixel
        edge = size // 2 + offset
        after = (np.arange(size) >= edge).reshape((1, -1, 1) if axis == 1 else (-1, 1, 1))
        frame = np.broadcast_to(np.where(after, COLOURS[kind][1], COLOURS[kind][0]), (size, size, 3)).astype(np.uint8)
        frames_FHWC = frame[None]
        for _ in range(4):
            write_video(tmp_path / "out.mp4", frames_FHWC, 8, crf=0)
            frames_FHWC = read_video(tmp_path / "out.mp4").frames_FHWC
            assert edge_position(frames_FHWC[0], SIGNALS[kind], axis) == pytest.approx(edge, abs=0.05)


@pytest.mark.parametrize("size", [128, 320, 720])
def test_colours_stay_over_four_generations(tmp_path: Path, size: int) -> None:
    colours = np.array([(16, 16, 16), (235, 235, 235), (200, 40, 40), (40, 180, 60), (40, 60, 200), (255, 255, 255)])
    frame = np.repeat(np.repeat(colours[None], size // 6, axis=1), size, axis=0)
    frame = np.pad(frame, ((0, 0), (0, size - frame.shape[1]), (0, 0)), mode="edge").astype(np.uint8)
    frames_FHWC = frame[None]
    for _ in range(4):
        write_video(tmp_path / "out.mp4", frames_FHWC, 8, crf=0)
        frames_FHWC = read_video(tmp_path / "out.mp4").frames_FHWC
    centres = [(2 * k + 1) * (size // 6) // 2 for k in range(6)]
    assert np.abs(frames_FHWC[0, size // 2, centres].astype(int) - colours).max() <= 4
