"""Whether a video and an instruction belong to the domain that a model was trained on."""

from __future__ import annotations

import numpy as np

from kiwi.data.sample import to_pixels, to_video_tensor
from kiwi.editing.editor import KiwiEditor
from kiwi.media.video import Video
from kiwi.models.sampling import eval_mode
from kiwi.sandbox.domain import MAX_INSTRUCTION_WORDS, unknown_words

MIN_RECONSTRUCTION_PSNR = 25.0
"""In dB: below this a clip is out of the autoencoder's domain. The shipped one has 30.7 dB on average over 210 clips
of its test split."""


def out_of_domain_reasons(
    editor: KiwiEditor, video: Video, instruction: str, references: int = 0, *, max_pixels: int | None = None
) -> list[str]:
    """Why an edit is outside the sandbox, one phrase per reason; none for a model that was trained on other videos too.

    Args:
        editor: the model.
        video: the source.
        instruction: what to change.
        references: number of reference images. Their content is not checked: the autoencoder reconstructs photographs
            as well as the sandbox's own references.
        max_pixels: height x width to work at; the model's default if not given.
    """
    if editor.defaults.domain != "sandbox":
        return []
    return [
        *_instruction_reasons(instruction, references),
        *_video_reasons(editor, video, editor.working_frames(video, max_pixels)),
    ]


def _instruction_reasons(instruction: str, references: int) -> list[str]:
    reasons = []
    if words := unknown_words(instruction):
        reasons.append(f"it has never seen the words {', '.join(map(repr, words[:5]))}{' ...' if words[5:] else ''}")
    if (length := len(instruction.split())) > MAX_INSTRUCTION_WORDS:
        reasons.append(f"the instruction has {length} words, in training it had at most {MAX_INSTRUCTION_WORDS}")
    mentions_reference = "reference" in instruction.lower()
    if references > 1:
        reasons.append(f"there are {references} reference images, in training there was at most one")
    elif mentions_reference and not references:
        reasons.append("the instruction mentions a reference, but there is no reference image")
    elif references and not mentions_reference:
        reasons.append("there is a reference image, but the instruction does not mention a reference")
    return reasons


def _video_reasons(editor: KiwiEditor, video: Video, frames: np.ndarray) -> list[str]:
    reasons, defaults = [], editor.defaults
    psnr = _reconstruction_psnr(editor, frames)
    if psnr < MIN_RECONSTRUCTION_PSNR:
        reasons.append(f"its autoencoder reconstructs the video at {psnr:.0f} dB, clips of its domain at about 30")
    height, width = frames.shape[1:3]
    if height * width * 4 < video.height * video.width or video.frame_count > defaults.max_frames:
        reasons.append(
            f"the video is {video.height}x{video.width}, {video.frame_count} frames, in training clips had "
            f"{defaults.max_pixels} pixels per frame and at most {defaults.max_frames} frames"
        )
    return reasons


def _reconstruction_psnr(editor: KiwiEditor, frames: np.ndarray) -> float:
    with eval_mode(editor.model):
        clip = to_video_tensor(frames[None]).to(editor.device)
        reconstruction = to_pixels(editor.model.vae.decode(editor.model.vae.encode(clip))[0])
    error = float(np.square(reconstruction.astype(np.float32) - frames).mean())
    return float(10 * np.log10(255.0**2 / max(error, 1e-3)))
