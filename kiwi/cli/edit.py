"""`kiwi edit VIDEO --instruction TEXT`: edit one video with a trained model."""

from __future__ import annotations

import logging
from pathlib import Path

from kiwi import console
from kiwi.cli import parser
from kiwi.errors import InputError

log = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Edit, write the mp4, say where it lies."""
    options = parser("edit", "Edit a video by an instruction and, if given, reference images; the result has its size.")
    options.add_argument("video", type=Path, help="video file, or an image")
    options.add_argument("--instruction", required=True, help="what to change, in words")
    options.add_argument(
        "--reference", type=Path, action="append", default=[], metavar="IMAGE", help="reference image; may be repeated"
    )
    options.add_argument(
        "--model",
        default="sandbox",
        help="model folder (written by `kiwi fit`) or hub id (default: %(default)s, the shipped editor of the rendered "
        "world: it knows no real videos)",
    )
    options.add_argument(
        "--out",
        type=Path,
        required=True,
        help="where the edited .mp4 (or .png of one frame) goes; its folder must exist",
    )
    options.add_argument("--steps", type=int, help="denoising steps (default: the model's own)")
    options.add_argument("--solver", choices=("euler", "unipc"), help="ODE solver (default: the model's own)")
    options.add_argument("--max-pixels", type=int, help="height x width to work at (default: the model's own)")
    options.add_argument(
        "--tiled", action="store_true", help="take the VAE through in overlapping tiles: less memory, more time"
    )
    options.add_argument("--seed", type=int, default=0, help="of the starting noise")
    options.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    arguments = options.parse_args(argv[1:])
    # Everything that can be wrong is looked at before the model is loaded.
    if not arguments.instruction.strip():
        raise InputError("--instruction is empty", fix="say in words what to change")
    if not arguments.out.parent.is_dir():
        folder = arguments.out.parent
        raise InputError(f"the folder {folder} for {arguments.out.name} does not exist", fix=f"mkdir -p {folder}")
    if arguments.out.suffix.lower() not in (".mp4", ".png"):
        raise InputError(f"cannot write {arguments.out}", wanted="a name ending in .mp4, or in .png for one frame")
    read = (arguments.video, *arguments.reference)
    if arguments.out.exists() and any(path.exists() and arguments.out.samefile(path) for path in map(Path, read)):
        raise InputError(f"{arguments.out} is read for the edit, which would replace it", fix="give another --out")
    for name in ("steps", "max_pixels"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1", got=value)

    from kiwi.media.image import read_image, write_image
    from kiwi.media.video import read_video, write_video

    video = read_video(arguments.video)
    is_picture = arguments.out.suffix.lower() == ".png"
    if is_picture and video.frame_count > 1:
        raise InputError(f"{arguments.out} can hold one frame", got=f"{video.frame_count} frames", fix="use .mp4")
    references = [read_image(path) for path in arguments.reference]

    from kiwi.editing.domain import out_of_domain_reasons
    from kiwi.editing.editor import KiwiEditor
    from kiwi.flow.solvers import EulerSolver, UniPCSolver
    from kiwi.models.device import usable_device
    from kiwi.models.vae.tiling import Tiling
    from kiwi.sandbox.knowledge import ABOUT

    editor = KiwiEditor.from_pretrained(arguments.model, device=usable_device(arguments.device))
    if arguments.tiled:
        editor.model.vae.tiling = Tiling()
    if editor.defaults.domain == "sandbox":
        console.note(f"{arguments.model} knows {ABOUT}.")
    if reasons := out_of_domain_reasons(
        editor, video, arguments.instruction, len(references), max_pixels=arguments.max_pixels
    ):
        log.warning("this is outside the model's world: %s; expect no sensible edit", "; ".join(reasons))
    sampling = editor.defaults.sampling
    if arguments.steps:
        sampling = sampling.replace(steps=arguments.steps)
    if arguments.solver:
        sampling = sampling.replace(solver={"euler": EulerSolver(), "unipc": UniPCSolver()}[arguments.solver])
    with console.progress_bar("denoising", sampling.steps) as advance:
        edited = editor.edit(
            video,
            arguments.instruction,
            references,
            sampling=sampling,
            max_pixels=arguments.max_pixels,
            seed=arguments.seed,
            on_step=lambda step, latents: advance(),
        )
    if is_picture:
        write_image(arguments.out, edited.frames_FHWC[0])
    else:
        write_video(arguments.out, edited.frames_FHWC, edited.fps)
    size = f"{edited.height}x{edited.width}, {edited.frame_count} frames at {float(edited.fps):g} fps"
    console.print(f"{arguments.out} ({size})")
    return 0
