"""Decoding and encoding: exact frames and rates, correct colours, and errors that describe the problem."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from kiwi.errors import InputError, MediaError
from kiwi.media.video import VideoInfo, probe, read_video, to_uint8, write_video

from .conftest import Encoder, frame_numbers, numbered_frames

B_FRAMES = {"bf": "3", "x264-params": "b-adapt=0:keyint=12:crf=5"}


def colour_bars(count: int = 3, height: int = 32, width: int = 64) -> np.ndarray:
    """Eight saturated vertical bars: a wrong colour matrix or range moves them by tens of levels."""
    colours = "ffffff e6dc14 14dce6 1ec828 c81ed2 dc141e 141edc 000000"
    row = np.frombuffer(bytes.fromhex(colours), np.uint8).reshape(8, 3).repeat(width // 8, axis=0)
    return np.broadcast_to(row, (count, height, width, 3)).copy()


def bar_centres(frames_FHWC: np.ndarray) -> np.ndarray:
    width = frames_FHWC.shape[2]
    return frames_FHWC[:, :, width // 16 :: width // 8].astype(int)


# --- frame selection ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("clip.mp4", "libx264", B_FRAMES),
        ("clip.mkv", "libx264", B_FRAMES),
        ("clip.ts", "libx264", B_FRAMES),
        ("clip.avi", "mpeg4", {"bf": "2", "b": "2M"}),
        ("clip.webm", "libvpx-vp9", {"crf": "5", "b": "0"}),
        ("clip.mov", "libx264", B_FRAMES),
    ],
)
def test_every_frame_is_decoded_once_in_presentation_order(
    encode: Encoder, name: str, codec: str, options: dict[str, str]
) -> None:
    path = encode(name, numbered_frames(30), codec=codec, codec_options=options)
    video = read_video(path)
    assert frame_numbers(video.frames_FHWC) == list(range(30))
    assert video.fps == 24
    assert (video.frame_count, video.height, video.width) == (30, 32, 48)
    info = probe(path)
    assert (info.frames, info.height, info.width, info.fps) == (30, 32, 48, 24)


def test_start_and_max_frames_cut_exactly(encode: Encoder) -> None:
    path = encode("clip.mp4", numbered_frames(30), codec_options=B_FRAMES)
    assert frame_numbers(read_video(path, max_frames=5).frames_FHWC) == [0, 1, 2, 3, 4]
    assert frame_numbers(read_video(path, start=13, max_frames=4).frames_FHWC) == [13, 14, 15, 16]
    assert frame_numbers(read_video(path, start=27, max_frames=9).frames_FHWC) == [27, 28, 29]


def test_nothing_after_the_last_selected_frame_is_decoded(encode: Encoder) -> None:
    path = encode("clip.mp4", numbered_frames(30), container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[:-200])
    assert read_video(path, max_frames=4).frame_count == 4
    with pytest.raises(MediaError):
        read_video(path)


def test_resampling_takes_the_nearest_frame_in_time(encode: Encoder) -> None:
    path = encode("clip.mp4", numbered_frames(30), codec_options=B_FRAMES)
    assert frame_numbers(read_video(path, fps=8).frames_FHWC) == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]
    doubled = read_video(path, fps=48)
    assert doubled.fps == 48
    assert frame_numbers(doubled.frames_FHWC)[:6] == [0, 0, 1, 1, 2, 2]
    assert doubled.frame_count == 60
    # 24 -> 10 frames a second: instants at 2.4 source frames
    assert frame_numbers(read_video(path, fps=10).frames_FHWC) == [0, 2, 5, 7, 10, 12, 14, 17, 19, 22, 24, 26, 29]
    assert frame_numbers(read_video(path, fps=10, start=2, max_frames=3).frames_FHWC) == [5, 7, 10]


def test_resampling_to_the_same_rate_changes_nothing_despite_rounded_timestamps(encode: Encoder) -> None:
    for rate in (24, Fraction(30000, 1001), 60):
        path = encode("clip.mkv", numbered_frames(30), fps=rate)  # timestamps in whole milliseconds
        assert frame_numbers(read_video(path, fps=Fraction(rate)).frames_FHWC) == list(range(30)), rate


def test_resampling_follows_the_timestamps_of_a_variable_rate(encode: Encoder) -> None:
    times = [0, 1, 2, 12, 13, 24]  # in 1/24 s: frames 2 and 4 are displayed for a long time
    path = encode("clip.mp4", numbered_frames(6), times=times, codec_options={"bf": "0"})
    numbers = frame_numbers(read_video(path, fps=12).frames_FHWC)
    expected = [max(k for k in range(6) if times[k] <= 2 * i) for i in range(13)]
    assert numbers[:13] == expected == [0, 2, 2, 2, 2, 2, 3, 4, 4, 4, 4, 4, 5]


def test_frames_hidden_by_an_edit_list_are_skipped_without_an_error(encode: Encoder) -> None:
    source = encode("clip.mp4", numbered_frames(24), codec_options=B_FRAMES)
    trimmed = source.with_name("trimmed.mp4")
    with av.open(str(source)) as reader, av.open(str(trimmed), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(reader.streams.video[0]):
            if packet.dts is not None:
                shift = int(3 / 24 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                writer.mux(packet)
    assert frame_numbers(read_video(trimmed).frames_FHWC) == list(range(3, 24))


# --- orientation and colour -----------------------------------------------------------------------


@pytest.mark.parametrize(("turn", "quarter_turns"), [(0, 0), (90, -1), (180, 2), (270, 1)])
@pytest.mark.parametrize("mirror", [False, True])
def test_display_rotation_and_mirroring_are_applied(
    encode: Encoder, turn: int, quarter_turns: int, mirror: bool
) -> None:
    frames = numbered_frames(2)
    frames[:, -8:, :12] = 128  # so that all eight orientations differ
    path = encode("clip.mp4", frames, turn=turn, mirror=mirror, codec_options={"crf": "2"})
    got = read_video(path).frames_FHWC
    expected = np.rot90(frames, quarter_turns, axes=(1, 2))
    options = [expected[:, :, ::-1], expected[:, ::-1]] if mirror else [expected]
    assert min(np.abs(got.astype(int) - o).mean() if got.shape == o.shape else 999 for o in options) < 3
    info = probe(path)
    assert (info.height, info.width) == got.shape[1:3]
    if not mirror:
        assert info.rotation == turn


@pytest.mark.parametrize(
    ("codec", "pixel_format", "matrix", "full_range"),
    [
        ("libx264", "yuv420p", 1, False),
        ("libx264", "yuv420p", 5, False),
        ("libx264", "yuv444p", 1, False),
        ("libx264", "yuvj420p", 5, True),
        ("libx264", "yuv420p", 1, True),
        ("libx264", "yuv422p", 1, False),
        ("libx264", "yuv420p10le", 1, False),
        ("libx264", "yuv420p10le", 9, False),
        ("libx264rgb", "rgb24", 2, True),
        ("ffv1", "bgr0", 2, True),
        ("ffv1", "gbrp10le", 2, True),
        ("ffv1", "bgra", 2, True),
        ("ffv1", "yuv420p", 2, False),  # untagged: BT.601, as ffmpeg reads it
    ],
)
def test_colours_survive_every_pixel_format_matrix_and_range(
    encode: Encoder, codec: str, pixel_format: str, matrix: int, full_range: bool
) -> None:
    frames = colour_bars()
    path = encode(
        "clip.mkv", frames, codec=codec, pixel_format=pixel_format, matrix=matrix, full_range=full_range,
        codec_options={"crf": "4"} if codec.startswith("libx") else {},
    )  # fmt: skip
    difference = np.abs(bar_centres(read_video(path).frames_FHWC) - bar_centres(frames))
    assert difference.max() <= 5


def test_gray_video_becomes_gray_rgb(encode: Encoder) -> None:
    path = encode("clip.mkv", numbered_frames(3), codec="ffv1", pixel_format="gray")
    frames = read_video(path).frames_FHWC
    assert frame_numbers(frames) == [0, 1, 2]
    assert np.ptp(frames.astype(int), axis=3).max() == 0
    assert frames[:, :4, :4].min() >= 254


def test_transparency_is_composited_on_white(encode: Encoder) -> None:
    frames = np.zeros((2, 16, 16, 4), np.uint8)
    frames[:, :, 8:, 3] = 255
    frames[:, 8:, :8, 3] = 128
    video = read_video(encode("clip.mkv", frames, codec="ffv1", pixel_format="bgra")).frames_FHWC
    assert video.shape == (2, 16, 16, 3)
    assert (video[:, :8, :8] == 255).all()
    assert (video[:, 8:, :8] == 127).all()
    assert (video[:, :, 8:] == 0).all()


# --- images as videos -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_an_image_is_a_video_of_one_frame(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"still{suffix}"
    Image.new("RGB", (20, 10), (200, 30, 40)).save(path)
    video = read_video(path)
    assert video.frames_FHWC.shape == (1, 10, 20, 3)
    assert np.abs(video.frames_FHWC.astype(int) - [200, 30, 40]).max() <= 6
    assert probe(path) == VideoInfo(frames=1, height=10, width=20, fps=video.fps)


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [16, Fraction(30000, 1001), Fraction(25, 2), Fraction(1, 2), 12.5])
@pytest.mark.parametrize("count", [1, 9])
def test_written_video_keeps_count_rate_and_duration_exactly(tmp_path: Path, fps: float | Fraction, count: int) -> None:
    path = tmp_path / "out.mp4"
    write_video(path, numbered_frames(count), fps)
    video = read_video(path)
    assert frame_numbers(video.frames_FHWC) == list(range(count))
    assert video.fps == probe(path).fps == Fraction(fps)
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert float(stream.duration * stream.time_base) == pytest.approx(count / fps, rel=1e-3)
        assert stream.codec_context.name == "h264"


@pytest.mark.parametrize(("height", "width", "kept"), [(128, 160, False), (126, 160, True), (32, 32, True)])
def test_small_videos_have_chroma_planes_of_full_size(tmp_path: Path, height: int, width: int, kept: bool) -> None:
    stripes = np.zeros((2, height, width, 3), np.uint8)
    stripes[:, :, ::2], stripes[:, :, 1::2] = (224, 40, 44), (30, 92, 232)
    write_video(tmp_path / "out.mp4", stripes, 8, crf=10)
    assert probe(tmp_path / "out.mp4").pixel_format == ("yuv444p" if kept else "yuv420p")
    decoded = read_video(tmp_path / "out.mp4").frames_FHWC.astype(int)
    assert (np.abs(decoded - stripes).max() < 20) == kept


@pytest.mark.parametrize(
    ("written", "exact"), [(23.976, (24000, 1001)), (29.97, (30000, 1001)), (59.94, (60000, 1001))]
)
def test_a_decimal_ntsc_rate_becomes_the_exact_rate(tmp_path: Path, written: float, exact: tuple[int, int]) -> None:
    write_video(tmp_path / "out.mp4", numbered_frames(3), written)
    assert read_video(tmp_path / "out.mp4").fps == Fraction(*exact)


@pytest.mark.parametrize("size", [(33, 48), (32, 47), (33, 47), (1, 1), (2, 2)])
def test_any_size_is_kept_exactly(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = numbered_frames(3, *size)
    write_video(tmp_path / "out.mp4", frames, 16)
    got = read_video(tmp_path / "out.mp4").frames_FHWC
    assert got.shape == frames.shape
    assert np.abs(got.astype(int) - frames).mean() < 3


@pytest.mark.parametrize("size", [(32, 64), (33, 64)])
def test_colours_round_trip_and_are_tagged_bt709_limited(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "out.mp4"
    frames = colour_bars(3, *size)
    write_video(path, frames, 16, crf=4)
    assert np.abs(bar_centres(read_video(path).frames_FHWC) - bar_centres(frames)).max() <= 4
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (1, 1, 1, 1)


def test_the_index_is_written_before_the_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "out.mp4", numbered_frames(3), 16)
    data = (tmp_path / "out.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_smaller_crf_is_closer_to_the_original(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    error = {}
    for crf in (1, 40):
        write_video(tmp_path / "out.mp4", frames, 16, crf=crf)
        error[crf] = np.abs(read_video(tmp_path / "out.mp4").frames_FHWC.astype(int) - frames).mean()
    assert error[1] < error[40] - 5


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.mp4"
    write_video(path, numbered_frames(3), 16)
    before = path.read_bytes()
    with pytest.raises(MediaError, match=r"out\.mp4.*20000x2", check=lambda error: error.code == "encoding-failed"):
        write_video(path, np.zeros((1, 2, 20000, 3), np.uint8), 16)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["out.mp4"]  # noqa: PTH208


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), 16, r"float32.*uint8.*to_uint8"),
        (np.zeros((8, 8, 3), np.uint8), 16, r"\(8, 8, 3\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), 16, r"\(0, 8, 8, 3\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), 0, "fps must be positive"),
        (np.zeros((2, 8, 8, 3), np.uint8), float("nan"), "fps must be positive"),
    ],
)
def test_frames_that_are_not_a_video_are_rejected(tmp_path: Path, frames: np.ndarray, fps: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_video(tmp_path / "out.mp4", frames, fps)
    assert not any(tmp_path.iterdir())


def test_a_missing_folder_is_an_error_with_the_command_that_creates_it(tmp_path: Path) -> None:
    folder = tmp_path / "no such"
    with pytest.raises(InputError, match=r"mkdir -p '.*no such'", check=lambda error: error.code == "missing-folder"):
        write_video(folder / "out.mp4", numbered_frames(1), 16)


def test_to_uint8_rounds_clips_and_keeps_every_level() -> None:
    levels = np.arange(256, dtype=np.float32) / 127.5 - 1
    for dtype in (np.float32, np.float64):
        assert (to_uint8(levels.astype(dtype)) == np.arange(256)).all()
    assert to_uint8(np.array([-9.0, -1.0, 0.9999, 1.0, 9.0])).tolist() == [0, 0, 255, 255, 255]
    assert to_uint8(np.ones((2, 3), np.float16)).tolist() == [[255] * 3] * 2


def test_to_uint8_rejects_nan_and_integers_and_does_not_change_its_input() -> None:
    values = np.array([0.5, np.nan])
    with pytest.raises(InputError, match="1 of 2", check=lambda error: error.code == "not-finite"):
        to_uint8(values)
    assert values[0] == 0.5
    with pytest.raises(InputError, match="uint8"):
        to_uint8(np.zeros(3, np.uint8))


# --- unreadable files --------------------------------------------------------------------------


def test_a_missing_file_or_a_folder_is_named_in_the_error(tmp_path: Path) -> None:
    for read in (read_video, probe):
        with pytest.raises(MediaError, match=r"gone\.mp4", check=lambda error: error.code == "missing-file"):
            read(tmp_path / "gone.mp4")
        with pytest.raises(MediaError, match="directory", check=lambda error: error.code == "unreadable-video"):
            read(tmp_path)
        with pytest.raises(MediaError, match=r"gone\.png", check=lambda error: error.code == "missing-file"):
            read(tmp_path / "gone.png")


def test_noise_and_empty_files_are_not_videos(tmp_path: Path) -> None:
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    empty = tmp_path / "empty.mp4"
    empty.touch()
    for read in (read_video, probe):
        with pytest.raises(MediaError, match=r"noise\.mp4", check=lambda error: error.code == "unreadable-video"):
            read(noise)
        with pytest.raises(MediaError, match=r"empty\.mp4", check=lambda error: error.code == "unreadable-video"):
            read(empty)


def test_audio_only_file_says_that_there_is_no_video(audio_only: Path) -> None:
    with pytest.raises(MediaError, match=r"song\.mp4.*audio", check=lambda error: error.code == "unreadable-video"):
        read_video(audio_only)


def test_video_stream_without_frames(tmp_path: Path) -> None:
    path = tmp_path / "none.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuv420p"
        container.start_encoding()
    for read in (read_video, probe):
        with pytest.raises(MediaError, match=r"none\.avi (has no frames|cannot be opened)"):
            read(path)


@pytest.mark.parametrize(
    ("name", "codec"), [("clip.mp4", "libx264"), ("clip.mkv", "libx264"), ("clip.webm", "libvpx-vp9")]
)
def test_a_truncated_file_is_an_error_with_the_number_of_decoded_frames(encode: Encoder, name: str, codec: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (30, 32, 48, 3), dtype=np.uint8)
    path = encode(name, noise, codec=codec, container_options={"movflags": "faststart"} if name == "clip.mp4" else {})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(MediaError, match=rf"{name} is truncated or corrupt: \d+ frames of 30 announced") as caught:
        read_video(path)
    decoded = int(str(caught.value).split("corrupt: ")[1].split()[0])
    assert 5 <= decoded <= 25


def test_file_cut_before_its_index_cannot_be_opened(encode: Encoder) -> None:
    path = encode("clip.mp4", numbered_frames(30))  # the index is at the end
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov")])
    with pytest.raises(MediaError, match=r"clip\.mp4", check=lambda error: error.code == "unreadable-video"):
        read_video(path)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts"])
def test_damage_in_the_middle_is_an_error(encode: Encoder, name: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (30, 32, 48, 3), dtype=np.uint8)
    path = encode(name, noise, container_options={"movflags": "faststart"} if name == "clip.mp4" else {})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 7] = bytes(len(data) // 7)
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"truncated or corrupt: \d+ frames"):
        read_video(path)


def test_arguments_out_of_range_are_named_in_the_error(encode: Encoder) -> None:
    path = encode("clip.mp4", numbered_frames(5))
    with pytest.raises(InputError, match="max_frames", check=lambda error: error.code == "out-of-range"):
        read_video(path, max_frames=0)
    with pytest.raises(InputError, match="start", check=lambda error: error.code == "out-of-range"):
        read_video(path, start=-1)
    with pytest.raises(InputError, match="frame 5", check=lambda error: error.code == "out-of-range"):
        read_video(path, start=5)
    with pytest.raises(InputError, match="fps", check=lambda error: error.code == "out-of-range"):
        read_video(path, fps=0)


def test_an_audio_stream_is_ignored(encode: Encoder) -> None:
    path = encode("clip.mkv", numbered_frames(5), with_audio=True)  # the audio is longer
    assert frame_numbers(read_video(path).frames_FHWC) == [0, 1, 2, 3, 4]


def test_real_clips_have_their_81_frames(clips: Path) -> None:
    for path in (clips / "bathroom.mp4", clips / "refvie-mini" / "videos" / "38.mp4"):
        assert probe(path).frames == 81
        assert read_video(path, start=75).frame_count == 6
