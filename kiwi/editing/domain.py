"""Whether a video and an instruction are of the world that a model was trained in."""

from __future__ import annotations

import numpy as np

from kiwi.data.sample import pixels, video_tensor
from kiwi.editing.editor import KiwiEditor
from kiwi.media.video import Video
from kiwi.models.sampling import eval_mode
from kiwi.sandbox.knowledge import LONGEST, unknown_words

MIN_RECONSTRUCTION_PSNR = 25.0
"""dB that an autoencoder has of clips of its own world: the shipped one has 30.7 on average of 210 of split test."""


def out_of_domain_reasons(
    editor: KiwiEditor, video: Video, instruction: str, references: int = 0, *, max_pixels: int | None = None
) -> list[str]:
    """What of an edit lies outside the sandbox, a phrase each; nothing for an editor that was trained elsewhere too.

    Args:
        editor: the model.
        video: to be edited.
        instruction: what to do.
        references: how many pictures come with it. What they show is not looked at: the autoencoder gives photographs
            back as faithfully as the world's own references.
        max_pixels: height x width to work at; the model's own unless given.
    """
    if editor.defaults.domain != "sandbox":
        return []
    found = []
    if words := unknown_words(instruction):
        found.append(f"it never heard {', '.join(map(repr, words[:5]))}{' ...' if words[5:] else ''}")
    if (length := len(instruction.split())) > LONGEST:
        found.append(f"the instruction has {length} words, its own at most {LONGEST}")
    spoken_of = "reference" in instruction.lower()
    if references > 1:
        found.append(f"there are {references} references, its edits had one at most")
    elif spoken_of != bool(references):
        missing = "the instruction speaks of a reference, and there is none"
        found.append(missing if spoken_of else "there is a reference, and no word of the instruction is about it")
    frames = editor.working_frames(video, max_pixels)
    with eval_mode(editor.model):
        clip = video_tensor(frames[None]).to(editor.device)
        back = pixels(editor.model.vae.decode(editor.model.vae.encode(clip))[0])
    error = float(np.square(back.astype(np.float32) - frames).mean())
    if (faithful := 10 * np.log10(255.0**2 / max(error, 1e-3))) < MIN_RECONSTRUCTION_PSNR:
        found.append(f"its autoencoder gives the video back at {faithful:.0f} dB, clips of its world at about 30")
    height, width = frames.shape[1:3]
    if height * width * 4 < video.height * video.width or video.frame_count > editor.defaults.max_frames:
        size = f"{video.height}x{video.width}, {video.frame_count} frames"
        found.append(
            f"the video is {size}, its clips had {editor.defaults.max_pixels} pixels a frame, at most "
            f"{editor.defaults.max_frames} frames"
        )
    return found
