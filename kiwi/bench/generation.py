"""Editing a benchmark's items with a model; the only module of this package that imports `kiwi.editing`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kiwi import console
from kiwi.bench.options import BenchmarkOptions
from kiwi.bench.runner import JudgingTask, VideoGenerator
from kiwi.bench.suites import BenchmarkItem, Suite
from kiwi.media.files import make_folder
from kiwi.media.image import read_image
from kiwi.media.video import read_video, write_video


def build_generator(options: BenchmarkOptions, suite: Suite) -> VideoGenerator:
    """Load the editor named in the options; return a function that edits items at the suite's length and frame rate.

    Raises:
        CheckpointError: the model cannot be loaded.
        InputError: the device is not available.
    """
    from kiwi.editing.editor import KiwiEditor  # torch and the models take seconds to import

    editor = KiwiEditor.from_pretrained(str(options.editor), device=options.device)
    sampling = editor.defaults.sampling
    if options.steps is not None:
        sampling = sampling.replace(steps=options.steps)

    def generate(item: BenchmarkItem, path: Path) -> None:
        make_folder(path.parent)
        video = read_video(item.source)
        video = replace(video, frames_FHWC=video.frames_FHWC[: suite.frames])
        references = [] if item.reference is None else [read_image(item.reference)]
        edited = editor.edit(
            video, item.instruction, references, sampling=sampling, max_pixels=options.max_pixels, seed=0
        )
        write_video(path, edited.frames_FHWC, suite.fps)

    return generate


def generate_part(tasks: Sequence[JudgingTask], generate: VideoGenerator | None) -> int:
    """Generate the missing videos of some tasks and return their number."""
    missing = [task for task in tasks if not task.edited.is_file()]
    for task in console.progress(missing, "generating"):
        assert generate is not None  # callers build it if any video is missing
        generate(task.item, task.edited)
    return len(missing)
