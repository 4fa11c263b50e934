"""How much a video changes when it is written and read again, as edits of edits are.

    KIWI_CLIPS=CLIPS python benchmarks/media/round_trips.py

The first table has the horizontal position of an edge between two colours of equal luma, relative to where it was
drawn, in pixels: chroma that is written centred and read left-sited moves by half a pixel in each generation. The
second one has the PSNR of the first frames of real clips (`KIWI_CLIPS`), scaled to 320 pixels wide and written at the
default quality, relative to the frames before the first generation.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from kiwi import console
from kiwi.media.video import read_video, write_video
from kiwi.tables import Table

GENERATIONS = (1, 4, 6)
_BEFORE, _AFTER = (150, 100, 90), (90, 100, 150)


def repeat(frames_FHWC: np.ndarray, folder: Path, crf: int) -> dict[int, np.ndarray]:
    """Write and read frames repeatedly; returns those of each number in GENERATIONS."""
    results = {}
    for generation in range(1, max(GENERATIONS) + 1):
        write_video(folder / "clip.mp4", frames_FHWC, 8, crf=crf)
        frames_FHWC = read_video(folder / "clip.mp4").frames_FHWC
        results[generation] = frames_FHWC
    return {generation: results[generation] for generation in GENERATIONS}


def measure_edge(size: int, folder: Path) -> list[str]:
    """How far a colour edge has moved to the right after each number of generations (lossless), in pixels."""
    edge = size // 2
    colours = np.where((np.arange(size) >= edge)[None, :, None], _AFTER, _BEFORE)
    frames_FHWC = np.broadcast_to(colours, (size, size, 3)).astype(np.uint8)[None]
    return [f"{edge_position(frames[0]) - edge:+.3f}" for frames in repeat(frames_FHWC, folder, crf=0).values()]


def edge_position(frame_HWC: np.ndarray) -> float:
    """Where blue minus red crosses the middle between its two ends, in pixels."""
    profile = (frame_HWC[..., 2].astype(float) - frame_HWC[..., 0]).mean(axis=0)
    middle = (profile[:20].mean() + profile[-20:].mean()) / 2
    after = int(np.argmax(profile > middle))
    return after - 0.5 + (middle - profile[after - 1]) / (profile[after] - profile[after - 1])


def measure_psnr(clip: Path, folder: Path) -> list[str]:
    """PSNR of the first five frames of a clip after each number of generations, in decibels."""
    video = read_video(clip, max_frames=5)
    shape = (320, round(320 * video.height / video.width / 2) * 2)
    images = [Image.fromarray(frame).resize(shape, Image.Resampling.LANCZOS) for frame in video.frames_FHWC]
    frames_FHWC = np.stack([np.asarray(image) for image in images])
    return [f"{psnr(frames, frames_FHWC):.2f}" for frames in repeat(frames_FHWC, folder, crf=18).values()]


def psnr(frames_FHWC: np.ndarray, reference_FHWC: np.ndarray) -> float:
    """Peak signal-to-noise ratio in decibels."""
    return float(10 * np.log10(255**2 / np.mean((frames_FHWC.astype(float) - reference_FHWC) ** 2)))


def main() -> int:
    """Print both tables; the second one only if there are clips."""
    header = [f"after {generation}" for generation in GENERATIONS]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        edges = [[size, *measure_edge(size, folder)] for size in (128, 320, 720)]
        console.print(Table("Movement of a colour edge in pixels", ["size", *header], edges).to_markdown())
        clips = sorted(Path(os.environ["KIWI_CLIPS"]).rglob("*.mp4"))[:8] if os.environ.get("KIWI_CLIPS") else []
        if not clips:
            console.note("set KIWI_CLIPS to a folder of clips to measure the PSNR of real frames")
            return 0
        rows = [[clip.stem[:30], *measure_psnr(clip, folder)] for clip in clips]
        means = [f"{np.mean([float(row[column]) for row in rows]):.2f}" for column in range(1, len(header) + 1)]
        rows.append(["mean", *means])
        console.print(Table("PSNR of real frames in decibels, 320 pixels wide", ["clip", *header], rows).to_markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
