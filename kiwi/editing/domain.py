"""Reasons why an edit is outside the domain that its model was trained on."""

import numpy as np

from kiwi.data.sample import to_pixels, to_video_tensor
from kiwi.editing.editor import KiwiEditor
from kiwi.media.video import Video
from kiwi.models.sampling import eval_mode
from kiwi.sandbox.grammar import MAX_INSTRUCTION_WORDS, unknown_words

MIN_RECONSTRUCTION_PSNR = 25.0
"""PSNR in dB of the VAE's reconstruction below which a video is outside its domain.

The shipped VAE reaches 30.7 dB on average over 210 clips of its test split."""


def out_of_domain_reasons(
    editor: KiwiEditor, video: Video, instruction: str, num_references: int = 0, *, max_pixels: int | None = None
) -> list[str]:
    """List the reasons why an edit is outside the sandbox; there are none if the editor was not trained on it alone.

    The content of reference images is not checked, because the VAE reconstructs photographs as well as the sandbox's
    references. `max_pixels` is the largest height x width to edit at; the model's default if not given.
    """
    if editor.defaults.domain != "sandbox":
        return []
    return [
        *_instruction_reasons(instruction, num_references),
        *_video_reasons(editor, video, editor.resize_and_pad(video, max_pixels)),
    ]


def _instruction_reasons(instruction: str, num_references: int) -> list[str]:
    reasons = []
    if words := unknown_words(instruction):
        listed = ", ".join(map(repr, words[:5])) + (" ..." if words[5:] else "")
        reasons.append(f"the instruction contains words outside the training vocabulary: {listed}")
    if (length := len(instruction.split())) > MAX_INSTRUCTION_WORDS:
        reasons.append(f"the instruction has {length} words (at most {MAX_INSTRUCTION_WORDS} in training)")
    mentions_reference = "reference" in instruction.lower()
    if num_references > 1:
        reasons.append(f"there are {num_references} reference images (at most one in training)")
    elif mentions_reference and not num_references:
        reasons.append("the instruction mentions a reference, but there is no reference image")
    elif num_references and not mentions_reference:
        reasons.append("there is a reference image, but the instruction does not mention a reference")
    return reasons


def _video_reasons(editor: KiwiEditor, video: Video, frames: np.ndarray) -> list[str]:
    reasons, defaults = [], editor.defaults
    psnr = _reconstruction_psnr(editor, frames)
    if psnr < MIN_RECONSTRUCTION_PSNR:
        reasons.append(
            f"the model's VAE reconstructs this video with only {psnr:.0f} dB PSNR (about 30 dB on training clips)"
        )
    height, width = frames.shape[1:3]
    if height * width * 4 < video.height * video.width or video.frame_count > defaults.max_frames:
        reasons.append(
            f"the video has {video.frame_count} frames of {video.height}x{video.width} (training clips had at most "
            f"{defaults.max_frames} frames of {defaults.max_pixels} pixels)"
        )
    return reasons


def _reconstruction_psnr(editor: KiwiEditor, frames: np.ndarray) -> float:
    with eval_mode(editor.model):
        clip = to_video_tensor(frames[None]).to(editor.device)
        reconstruction = to_pixels(editor.model.vae.decode(editor.model.vae.encode(clip))[0])
    error = float(np.square(reconstruction.astype(np.float32) - frames).mean())
    return float(10 * np.log10(255.0**2 / max(error, 1e-3)))
