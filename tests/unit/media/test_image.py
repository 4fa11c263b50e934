"""Images of all formats are read; sizes and geometry match published values."""

import io
import json
import math
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from safetensors.numpy import load_file

from kiwi.errors import InputError, MediaError
from kiwi.media.contact_sheet import contact_sheet
from kiwi.media.image import check_image, read_image, write_image
from kiwi.media.resize import crop_resize, fit_size, letterbox, resize, smart_resize, snap_frames

BICUBIC = Image.Resampling.BICUBIC
GOLDEN = Path(__file__).parents[2] / "golden"
PREPROCESS = json.loads((GOLDEN / "mllm_preprocess.json").read_text())


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


# --- reading and writing --------------------------------------------------------------------------


def test_png_round_trip_is_exact_and_jpeg_close(tmp_path: Path) -> None:
    image = np.asarray(Image.fromarray(noise(6, 9)).resize((45, 30), BICUBIC))
    for name in ("a.png", "b.jpg", "c.JPEG"):
        write_image(tmp_path / name, image)
    assert (read_image(tmp_path / "a.png") == image).all()
    assert np.abs(read_image(str(tmp_path / "b.jpg")).astype(int) - image).mean() < 2
    assert read_image((tmp_path / "c.JPEG").read_bytes()).shape == (30, 45, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = noise(4, 6)
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (read_image(encode(stored, "PNG", exif=exif)) == upright).all()


def test_transparency_is_composited_on_white_in_every_mode() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [0, 128, 255]
    picture = Image.fromarray(rgba)
    for image in (picture, picture.convert("LA")):
        assert np.abs(read_image(encode(image, "PNG"))[0, :, 0].astype(int) - [255, 127, 0]).max() <= 1
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 200, 0])
    palette.putpixel((1, 0), 1)
    assert read_image(encode(palette, "PNG", transparency=0)).tolist() == [[[255, 255, 255], [0, 200, 0]]]
    rgb = Image.new("RGB", (1, 1), (1, 2, 3))
    assert read_image(encode(rgb, "PNG", transparency=(1, 2, 3))).tolist() == [[[255, 255, 255]]]


def test_gray_bilevel_palette_and_cmyk_become_rgb() -> None:
    assert read_image(encode(Image.new("L", (1, 1), 77), "PNG")).tolist() == [[[77, 77, 77]]]
    assert read_image(encode(Image.new("1", (1, 1), 1), "PNG")).tolist() == [[[255, 255, 255]]]
    assert read_image(encode(Image.new("RGB", (1, 1), (9, 8, 7)).quantize(), "GIF")).tolist() == [[[9, 8, 7]]]
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(read_image(encode(cmyk, "JPEG", quality=100))[4, 4].astype(int) - [255, 0, 0]).max() <= 3


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    got = read_image(encode(Image.fromarray(values), "PNG"))
    assert got[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_an_unreadable_image_is_named_in_the_error(tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("hello")
    with pytest.raises(MediaError, match=r"notes\.png", check=lambda error: error.code == "unreadable-image"):
        read_image(text)
    with pytest.raises(MediaError, match="row 7", check=lambda error: error.code == "unreadable-image"):
        read_image(b"hello", name="row 7")
    with pytest.raises(MediaError, match=r"gone\.png", check=lambda error: error.code == "missing-file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(MediaError, match="directory", check=lambda error: error.code == "unreadable-image"):
        read_image(tmp_path)
    with pytest.raises(MediaError, match="row 8", check=lambda error: error.code == "unreadable-image"):
        read_image(b"", name="row 8")


def test_a_truncated_image_passes_the_header_check_but_cannot_be_read() -> None:
    data = encode(Image.fromarray(noise(64, 64)), "PNG")[:3000]
    check_image(data)
    with pytest.raises(MediaError, check=lambda error: error.code == "damaged-image"):
        read_image(data)
    with pytest.raises(MediaError, check=lambda error: error.code == "damaged-image"):
        read_image(encode(Image.fromarray(noise(64, 64)), "JPEG")[:1000])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_decompression_bomb_is_rejected_by_its_header(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    bomb += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    for read in (read_image, check_image):
        with pytest.raises(MediaError, match=r"row 3.* 89 mega", check=lambda error: error.code == "image-too-large"):
            read(bomb, name="row 3")


def test_postscript_is_not_executed() -> None:
    with pytest.raises(MediaError, check=lambda error: error.code == "unreadable-image"):
        read_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")


def test_write_image_rejects_unsupported_suffixes_and_pixel_types(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.gif\..*\.png or \.jpg"):
        write_image(tmp_path / "a.gif", noise(2, 2))
    with pytest.raises(InputError, match="float64"):
        write_image(tmp_path / "a.png", noise(2, 2) / 255)
    assert not any(tmp_path.iterdir())


# --- size rules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", PREPROCESS["latent_side_resize"]["cases"])
def test_fit_size_follows_the_published_rule(case: dict) -> None:
    size = fit_size(case["height"], case["width"], max_pixels=case["max_pixels"], multiple=32)
    assert list(size) == case["output_h_w"]


def test_fit_size_gives_multiples_within_the_limit_and_never_enlarges() -> None:
    rng = np.random.default_rng(0)
    for height, width, limit in rng.integers(32, 3000, (300, 3)).tolist():
        h, w = fit_size(height, width, max_pixels=limit * 1000, multiple=16)
        assert h % 16 == w % 16 == 0
        assert 16 <= h <= height
        assert 16 <= w <= width
        assert h * w <= limit * 1000
        assert (h, w) == fit_size(h, w, max_pixels=limit * 1000, multiple=16)
    assert fit_size(5, 5, max_pixels=None, multiple=32) == (32, 32)
    with pytest.raises(InputError, match="multiple", check=lambda error: error.code == "out-of-range"):
        fit_size(5, 5, max_pixels=None, multiple=0)


@pytest.mark.parametrize("case", [c for c in PREPROCESS["geometry"] if c["kind"] == "image"])
def test_smart_resize_of_images_matches_the_published_geometry(case: dict) -> None:
    limit = case["max_pixels"] or 16384 * 28**2
    size = smart_resize(case["height"], case["width"], factor=28, min_pixels=4 * 28**2, max_pixels=limit)
    assert list(size) == case["resize_h_w"]


@pytest.mark.parametrize("case", [c for c in PREPROCESS["geometry"] if c["kind"] == "video"])
def test_smart_resize_of_videos_matches_the_published_geometry(case: dict) -> None:
    limit = case["max_pixels"]
    frame_limits = {"min_pixels": 4 * 56**2, "max_pixels": limit or 16384 * 56**2}
    frame = smart_resize(case["height"], case["width"], factor=56, **frame_limits)
    assert list(frame) == case["frame_resize_h_w"]
    smallest = 128 * 28**2
    largest = max(min(768 * 28**2, 115200 * 28**2 // case["frames_used"] * 2), int(1.05 * smallest))
    video = smart_resize(*frame, factor=28, min_pixels=smallest, max_pixels=min(limit or largest, largest))
    assert list(video) == case["video_resize_h_w"]


def test_smart_resize_rounds_halves_to_even_and_stays_in_range() -> None:
    wide = {"factor": 28, "min_pixels": 1, "max_pixels": 10**9}
    assert smart_resize(42, 70, **wide) == (56, 56)  # 1.5 -> 2, 2.5 -> 2
    assert smart_resize(3, 3, **wide) == (28, 28)
    rng = np.random.default_rng(0)
    for height, width in rng.integers(100, 3000, (300, 2)).tolist():
        h, w = smart_resize(height, width, factor=28, min_pixels=200_000, max_pixels=300_000)
        assert h % 28 == w % 28 == 0
        assert 200_000 <= h * w <= 300_000


def test_snap_frames_is_the_largest_length_of_the_form_4k_plus_1() -> None:
    lengths = {0: 1, 1: 1, 2: 1, 4: 1, 5: 5, 8: 5, 9: 9, 49: 49, 80: 77, 81: 81, 84: 81, 85: 85}
    assert {count: snap_frames(count) for count in lengths} == lengths


# --- geometry -------------------------------------------------------------------------------------


def test_crop_resize_leaves_pixels_unchanged_where_no_resizing_is_needed() -> None:
    frames = np.stack([noise(90, 128, seed) for seed in range(2)])
    assert (crop_resize(frames, 90, 128) == frames).all()
    assert (crop_resize(frames, 88, 128) == frames[:, 1:89]).all()  # only a margin is cropped
    assert (crop_resize(frames, 90, 100) == frames[:, :, 14:114]).all()


def test_crop_resize_is_a_centre_crop_then_pil_bicubic() -> None:
    frames = np.stack([noise(100, 60, seed) for seed in range(2)])
    got = crop_resize(frames, 32, 64)  # aspect 2: the crop is 30 x 60 from row 35
    for frame, expected in zip(got, frames, strict=True):
        reference = Image.fromarray(expected[35:65]).resize((64, 32), BICUBIC)
        assert (frame == np.asarray(reference)).all()


def test_crop_resize_gives_the_requested_size_for_any_input() -> None:
    rng = np.random.default_rng(0)
    for h, w, height, width in rng.integers(1, 40, (100, 4)).tolist():
        resized = crop_resize(np.full((1, h, w, 3), 200, np.uint8), height, width)
        assert resized.tolist() == np.full((1, height, width, 3), 200).tolist()


def test_resize_is_pil_bicubic_and_the_identity_at_the_same_size() -> None:
    frames = noise(20, 30)[None]
    assert resize(frames, 20, 30) is frames
    expected = Image.fromarray(frames[0]).resize((44, 12), BICUBIC)
    assert (resize(frames, 12, 44)[0] == np.asarray(expected)).all()
    with pytest.raises(InputError, match=r"float64.*uint8 \[F, H, W, 3\]"):
        resize(frames / 255, 12, 44)


def test_letterbox_equals_the_golden_reference_image() -> None:
    spec = PREPROCESS["pixels"]["ref_padded"]
    y, x, c = np.mgrid[: spec["h"], : spec["w"], :3]
    image = ((spec["a"] * y + spec["b"] * x + spec["c_coef"] * c) % 256).astype(np.uint8)
    width, height = spec["target_w_h"]
    golden = load_file(GOLDEN / "mllm_preprocess.safetensors")["out/ref_padded_96x64"]
    assert (letterbox(image, height, width) == golden).all()


def test_letterbox_equals_pil_pad_for_any_shape() -> None:
    rng = np.random.default_rng(0)
    for h, w, height, width in rng.integers(6, 60, (100, 4)).tolist():  # older Pillow versions fail on smaller sizes
        image = noise(h, w)
        expected = ImageOps.pad(Image.fromarray(image), (width, height), method=BICUBIC, color="white")
        assert (letterbox(image, height, width) == np.asarray(expected)).all(), (h, w, height, width)


def test_letterbox_fits_the_image_then_shrinks_and_centres_it_on_white() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    box = letterbox(image, 100, 160, shrink=0.75)  # fitted: 80 x 160; shrunk: 60 x 120
    dark = box[:, :, 0] < 128
    assert (np.flatnonzero(dark.any(1))[[0, -1]] == [20, 79]).all()
    assert (np.flatnonzero(dark.any(0))[[0, -1]] == [20, 139]).all()
    assert (box[~dark] == 255).all()
    almost = letterbox(noise(40, 80), 100, 160, shrink=math.nextafter(1, 0))
    assert (almost == letterbox(noise(40, 80), 100, 160)).all()  # no jump at 1
    for bad in (0, 1.01, float("nan")):
        with pytest.raises(InputError, match="shrink", check=lambda error: error.code == "out-of-range"):
            letterbox(image, 10, 10, shrink=bad)


def test_contact_sheet_places_every_image_in_its_cell() -> None:
    images = [[np.full((20, 30, 3), 10 * (3 * r + c), np.uint8) for c in range(3 - r)] for r in range(2)]
    sheet = contact_sheet(images, gap=4)
    assert sheet.shape == (2 * 24 + 4, 3 * 34 + 4, 3)
    for r, row in enumerate(images):
        for c, image in enumerate(row):
            assert (sheet[4 + r * 24 : 24 + r * 24, 4 + c * 34 : 34 + c * 34] == image).all()
    assert (sheet[28:, 72:] == 255).all()  # the shorter row
    assert (sheet[:4] == 255).all()


def test_contact_sheet_writes_labels_beside_and_titles_above_the_images() -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    plain = contact_sheet([[image], [image]])
    labels = ["source", "a very long label that wraps"]
    sheet = contact_sheet([[image], [image]], labels=labels, column_titles=["frame 0"])
    top, left = sheet.shape[0] - plain.shape[0], sheet.shape[1] - plain.shape[1]
    assert top >= 8
    assert left >= 20
    assert (sheet[top + 4 : top + 44, left + 4 : left + 64] == 100).all()
    assert sheet[:top].min() < 80
    assert sheet[top:, :left].min() < 80
    for rows, labels in (([[image]], ["a", "b"]), ([[]], None)):
        with pytest.raises(ValueError):
            contact_sheet(rows, labels=labels)


def test_the_package_does_not_import_torch() -> None:
    code = "import sys, kiwi.media.video, kiwi.media.image, kiwi.media.files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
