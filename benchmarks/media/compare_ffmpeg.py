"""What kiwi reads from unusual media files, beside what the ffmpeg command line displays.

    python benchmarks/media/compare_ffmpeg.py --table benchmarks/media/ODD_FILES.md

`odd_files.py` makes the files with ffmpeg; files that an ffmpeg build cannot write are left out and named. For each
file the table has the size, the number of frames and the duration by kiwi and by ffmpeg, and the mean absolute
difference of all pixels in grey levels (0-255). A row is marked if the size differs by more than a pixel, the duration
by more than a frame, or the colours by more than a level, unless kiwi warns that the file is interlaced: the chroma
samples of its two fields are then read per field. The exit code is 1 if there are marked rows.

What ffmpeg displays: its own frames and timestamps of the default stream, converted by its scale filter with exact
rounding and the chroma siting of the file, then rotated, scaled to square pixels (bicubic) and composited on white. Of
a variable rate, each frame of kiwi is compared with the frame that ffmpeg displays at its time.
"""

import argparse
import json
import logging
import re
import shutil
import subprocess
import sys
import tempfile
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from odd_files import list_files, make_files
from PIL import Image

from kiwi import console
from kiwi.errors import KiwiError
from kiwi.media.video import read_video
from kiwi.tables import Table

# swscale reads chroma as left-sited unless it is told, in units of 1/256 pixel.
_HORIZONTAL = {"left": 0, "topleft": 0, "bottomleft": 0, "center": 128, "top": 128, "bottom": 128}
_VERTICAL = {"left": 128, "center": 128, "topleft": 0, "top": 0, "bottomleft": 256, "bottom": 256}
_FLAGS = "flags=bicubic+accurate_rnd+full_chroma_int+bitexact"
_ALPHA_DECODERS = {"alpha_vp8.webm": "libvpx", "alpha_vp9.webm": "libvpx-vp9"}  # others ignore the alpha channel
_WARNINGS = ("variable frame rate", "interlaced", "HDR")
_LARGEST_COLOUR_ERROR = 1.0
_TITLE = """# Unusual media files, read by kiwi and by ffmpeg

Written by [compare_ffmpeg.py](compare_ffmpeg.py), which describes the columns; sizes are width x height.

"""


@dataclass(frozen=True)
class Display:
    """Frames `[H, W, 3]` that ffmpeg displays, their times and the duration in seconds."""

    frames: list[np.ndarray]
    times: list[float]
    seconds: float


class Warnings(logging.Handler):
    """Keeps the properties that kiwi warns of."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.words += [word for word in _WARNINGS if word in record.getMessage()]


def display(path: Path) -> Display | None:
    """What ffmpeg displays; None for a file that this ffmpeg cannot read."""
    stream = _default_stream(path)
    if stream is None:
        return None
    select = ["-select_streams", str(stream["index"])]
    entries = ["-show_entries", "frame=best_effort_timestamp_time,pkt_duration_time,duration_time"]
    frames = json.loads(_run(["ffprobe", "-v", "error", *select, *entries, "-of", "json", str(path)]))["frames"]
    filters = f"scale=interl=-1:{_siting(stream)}{_FLAGS},format=rgba"
    decoder = ["-c:v", _ALPHA_DECODERS[path.name]] if path.name in _ALPHA_DECODERS else []
    command = ["ffmpeg", "-v", "error", "-noautorotate", *decoder, "-i", str(path), "-map", f"0:{stream['index']}"]
    raw = _run([*command, "-vf", filters, "-f", "rawvideo", "-vsync", "passthrough", "-pix_fmt", "rgba", "-"])
    pixels = np.frombuffer(raw, np.uint8).reshape(-1, stream["height"], stream["width"], 4)
    if not len(pixels):
        return None
    rotation = next((data["rotation"] for data in stream.get("side_data_list", []) if "rotation" in data), 0)
    aspect = re.fullmatch(r"(\d+):([1-9]\d*)", stream.get("sample_aspect_ratio", "")) or ["", "1", "1"]
    pictures = [_compose(frame, Fraction(int(aspect[1]) or 1, int(aspect[2])), int(rotation)) for frame in pixels]
    rate = float(Fraction(stream["avg_frame_rate"] if stream["avg_frame_rate"] != "0/0" else stream["r_frame_rate"]))
    times = [float(frame.get("best_effort_timestamp_time", index / rate)) for index, frame in enumerate(frames)]
    times = [time - times[0] for time in times]
    step = median(b - a for a, b in pairwise(times)) if len(times) > 1 else 1 / rate
    last = frames[-1].get("pkt_duration_time", frames[-1].get("duration_time", step))
    return Display(pictures, times, times[-1] + float(last))


def compare(path: Path) -> tuple[list[object], bool | None]:
    """One row of the table, and whether kiwi and ffmpeg agree; None if ffmpeg cannot read the file."""
    warnings = Warnings()
    logging.getLogger("kiwi").addHandler(warnings)
    try:
        video = read_video(path)
    except KiwiError as error:
        return [path.name, "-", "", "-", "", "-", "", "", f"ERROR {error.code}"], False
    finally:
        logging.getLogger("kiwi").removeHandler(warnings)
    notes = [f"warning: {word}" for word in dict.fromkeys(warnings.words)]
    size, seconds = (video.width, video.height), float(video.frame_count / video.fps)
    reference = display(path)
    if reference is None:
        notes.append("this ffmpeg cannot read it")
        row = [path.name, f"{size[0]}x{size[1]}", "-", video.frame_count, "-", f"{seconds:.3f}", "-", "-"]
        return [*row, "; ".join(notes)], None
    height, width = reference.frames[0].shape[:2]
    problems = []
    if max(abs(width - size[0]), abs(height - size[1])) > 1:
        problems.append("SIZE")
    if len(reference.frames) > 1 and abs(seconds - reference.seconds) > 1.05 / video.fps:
        problems.append("DURATION")
    error = _colour_error(video.frames_FHWC, video.fps, reference) if "SIZE" not in problems else float("nan")
    if not error <= _LARGEST_COLOUR_ERROR and "interlaced" not in warnings.words:
        problems.append("COLOUR")
    sizes = [f"{size[0]}x{size[1]}", f"{width}x{height}"]
    counts = [video.frame_count, len(reference.frames), f"{seconds:.3f}", f"{reference.seconds:.3f}"]
    return [path.name, *sizes, *counts, f"{error:.2f}", "; ".join([*problems, *notes])], not problems


def _default_stream(path: Path) -> dict[str, Any] | None:
    streams = json.loads(_run(["ffprobe", "-v", "error", "-show_streams", "-of", "json", str(path)]) or "{}")
    videos = [stream for stream in streams.get("streams", []) if stream["codec_type"] == "video" and stream["width"]]
    return next((stream for stream in videos if stream["disposition"]["default"]), next(iter(videos), None))


def _siting(stream: dict[str, Any]) -> str:
    siting, pixel_format = stream.get("chroma_location", "unspecified"), stream.get("pix_fmt", "")
    if siting not in _HORIZONTAL or not ("420" in pixel_format or "422" in pixel_format):
        return ""
    vertical = f"in_v_chr_pos={_VERTICAL[siting]}:" if "420" in pixel_format else ""
    return f"in_h_chr_pos={_HORIZONTAL[siting]}:{vertical}"


def _compose(frame_HWC: np.ndarray, aspect: Fraction, rotation: int) -> np.ndarray:
    """Composite on white, scale to square pixels and rotate (counterclockwise, in degrees)."""
    opacity = frame_HWC[..., 3:] / 255
    picture = (frame_HWC[..., :3] * opacity + 255 * (1 - opacity)).round().astype(np.uint8)
    height, width = picture.shape[:2]
    if aspect != 1:
        shape = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
        picture = np.asarray(Image.fromarray(picture).resize(shape, Image.Resampling.BICUBIC))
    return np.rot90(picture, rotation // 90)


def _colour_error(frames_FHWC: np.ndarray, fps: Fraction, reference: Display) -> float:
    """Mean absolute difference to what ffmpeg displays in the middle of each frame's time."""
    errors = []
    for index, frame in enumerate(frames_FHWC):
        shown = reference.frames[max(0, bisect_right(reference.times, (index + 0.5) / float(fps)) - 1)]
        if shown.shape != frame.shape:
            shown = np.asarray(Image.fromarray(shown).resize(frame.shape[1::-1], Image.Resampling.BICUBIC))
        errors.append(np.abs(frame.astype(float) - shown).mean())
    return float(np.mean(errors))


def _run(command: list[str]) -> bytes:
    return subprocess.run(command, capture_output=True).stdout


def main() -> int:
    """Make the files, compare them and print or write the table; returns exit code 1 if rows are marked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="folder of the files, which are kept (default: a temporary one)")
    parser.add_argument("--table", type=Path, help="Markdown file for the table (default: print it)")
    options = parser.parse_args()
    if shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None:
        parser.error("the programs ffmpeg and ffprobe are not installed")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        failed = make_files(folder)
        results = [compare(folder / name) for name in list_files() if name not in failed]
    verdicts, warned = [agrees for _, agrees in results], sum("warning" in str(row[-1]) for row, _ in results)
    header = ("file", "size", "by ffmpeg", "frames", "by ffmpeg", "seconds", "by ffmpeg", "colour error", "remarks")
    version = _run(["ffmpeg", "-version"]).decode().split(" Copyright")[0]
    total = f"{len(results)} files: {verdicts.count(True)} read as {version} displays them ({warned} with a warning), "
    total += f"{verdicts.count(False)} otherwise, {verdicts.count(None)} that this ffmpeg cannot read."
    total += "".join(f" Not written by this ffmpeg: {name} ({reason})." for name, reason in failed.items())
    text = Table("", header, [row for row, _ in results], note=total).to_markdown()
    if options.table:
        options.table.write_text(_TITLE + text, encoding="utf-8")
        console.print(total)
    else:
        console.print(text)
    return int(False in verdicts)


if __name__ == "__main__":
    sys.exit(main())
