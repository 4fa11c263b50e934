"""Editing of files: `edit_file` implements the command `kiwi edit`."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kiwi import console, shipped
from kiwi.errors import InputError
from kiwi.media.image import read_image, write_image
from kiwi.media.video import Video, read_video, write_video
from kiwi.options import DeviceOptions, option, positional
from kiwi.reading import require_text
from kiwi.sandbox.grammar import DOMAIN_DESCRIPTION

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EditOptions(DeviceOptions):
    """Edit a video by an instruction and, if given, reference images; the result has the source's size and length.

    Args:
        video: video file, or an image
        instruction: edit instruction, in plain words
        reference: reference image; may be repeated
        model: model folder (written by `kiwi fit`) or hub id; the default is the shipped editor, which was trained on
            rendered videos only
        out: path of the edited .mp4 (or .png, for one frame); its folder must exist
        steps: denoising steps (default: the model's)
        solver: ODE solver (default: the model's)
        max_pixels: largest height x width to edit at (default: the model's)
        tiled: run the VAE on overlapping tiles, which takes less memory but more time
        seed: seed of the initial noise
    """

    video: Path = positional()
    instruction: str
    reference: tuple[Path, ...] = option((), metavar="IMAGE", repeat=True)
    model: str = shipped.EDITOR
    out: Path
    steps: int | None = None
    solver: Literal["euler", "unipc"] | None = None
    max_pixels: int | None = None
    tiled: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "steps", "max_pixels")
        if not self.instruction.strip():
            raise InputError("--instruction is empty", code="empty-instruction", fix="describe the edit in words")
        require_text(self.instruction)
        if not (folder := self.out.parent).is_dir():
            raise InputError(f"the folder {folder} of --out does not exist", code="missing-folder", fix="create it")
        if self.out.suffix.lower() not in (".mp4", ".png"):
            expected = "a name that ends in .mp4, or in .png for one frame"
            raise InputError(f"cannot write {self.out}", code="wrong-suffix", expected=expected)
        inputs = (self.video, *self.reference)
        if self.out.exists() and any(path.exists() and self.out.samefile(path) for path in inputs):
            problem = f"{self.out} is an input of the edit and would be overwritten"
            raise InputError(problem, code="output-is-input", fix="give another --out")


def edit_file(options: EditOptions) -> Video:
    """Edit a video file, write the edited video, and return it; it has the source's size, length and frame rate.

    Raises:
        MediaError: a file cannot be read.
        CheckpointError: the model cannot be loaded.
        InputError: the output is a .png but the video has several frames, or the device cannot be used.
    """
    # The files are read before the model is loaded, which takes seconds.
    video, references = read_video(options.video), [read_image(path) for path in options.reference]
    is_image = options.out.suffix.lower() == ".png"
    if is_image and video.frame_count > 1:
        got = f"{video.frame_count} frames"
        raise InputError("a .png file can hold only one frame", code="too-many-frames", got=got, fix="use .mp4")

    from kiwi.editing.domain import out_of_domain_reasons
    from kiwi.editing.editor import KiwiEditor
    from kiwi.flow.solvers import EulerSolver, UniPCSolver
    from kiwi.models.vae.tiling import Tiling

    editor = KiwiEditor.from_pretrained(options.model, device=options.device)
    if options.tiled:
        editor.model.vae.tiling = Tiling()
    reasons = out_of_domain_reasons(editor, video, options.instruction, len(references), max_pixels=options.max_pixels)
    if reasons:
        log.warning(
            "the edit is outside the domain that %s was trained on, so the result may be poor: %s. The domain: %s.",
            options.model, "; ".join(reasons), DOMAIN_DESCRIPTION,
        )  # fmt: skip
    sampling = editor.defaults.sampling
    if options.steps is not None:
        sampling = sampling.replace(steps=options.steps)
    if options.solver is not None:
        sampling = sampling.replace(solver={"euler": EulerSolver(), "unipc": UniPCSolver()}[options.solver])
    with console.progress_bar("denoising", sampling.steps) as advance:
        edited = editor.edit(
            video,
            options.instruction,
            references,
            sampling=sampling,
            max_pixels=options.max_pixels,
            seed=options.seed,
            on_step=lambda step, latents: advance(),
        )
    if is_image:
        write_image(options.out, edited.frames_FHWC[0])
    else:
        write_video(options.out, edited.frames_FHWC, edited.fps)
    return edited
