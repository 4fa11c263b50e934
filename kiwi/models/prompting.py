"""From frames, an instruction and reference images to the token sequence that the MLLM reads.

The wording comes from a template file (prompt.json of the model folder). Text from users is tokenised as
plain text: a special token written in an instruction stays words. B samples, S tokens (padded right).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiwi.errors import CheckpointError, InputError, SpecError
from kiwi.media.image import resize, smart_resize
from kiwi.spec import Spec, require_positive

Mode = Literal["image", "video", "reference"]
"""What an edit is asked with: each mode has a template and a query table of its own (the paper's three)."""

Frames = NDArray[np.uint8]
"""uint8 RGB frames of shape (F, H, W, 3)."""

_SLOTS = {
    "image": ["source", "instruction", "queries"],
    "video": ["source", "instruction", "queries"],
    "reference": ["source", "instruction", "references", "queries"],
}
PLACEHOLDER = "<|object_ref_start|>"
"""The token whose embedding is replaced by a query (the published choice)."""


@dataclass(frozen=True, kw_only=True)
class VisionLimits(Spec):
    """How much of the pictures the MLLM reads; defaults as published.

    Args:
        max_frames: frames sampled evenly from the source video.
        max_pixels_per_frame: height x width of a frame at most.
        min_pixels_per_frame: at least; smaller videos are enlarged.
        max_reference_tokens: visual tokens (28 x 28 pixels for Qwen2.5-VL) of a reference image at most.
    """

    max_frames: int = 16
    max_pixels_per_frame: int = 512 * 512
    min_pixels_per_frame: int = 128 * 28 * 28
    max_reference_tokens: int = 768

    def __post_init__(self) -> None:
        require_positive(self, "max_frames", "min_pixels_per_frame", "max_reference_tokens")
        if self.max_pixels_per_frame < 1.05 * self.min_pixels_per_frame:
            raise SpecError("the MLLM's limits need max_pixels_per_frame above min_pixels_per_frame", got=self)


@dataclass
class Prompt:
    """A batch as the MLLM reads it. Grids are (frames, rows, columns) in vision patches."""

    input_ids_BS: Tensor
    attention_mask_BS: Tensor
    queries_BS: Tensor
    """True at the placeholders of the queries."""
    references_BS: Tensor
    """True at the visual tokens of the reference images."""
    token_types_BS: Tensor
    """0 text, 1 image, 2 video."""
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None
    pixel_values_videos: Tensor | None
    video_grid_thw: Tensor | None

    def tail_BS(self, count: int) -> Tensor:
        """True at the last `count` tokens of each sample, padding not counted."""
        ends_B1 = self.attention_mask_BS.sum(dim=1, keepdim=True)
        at_S = torch.arange(self.input_ids_BS.shape[1], device=self.input_ids_BS.device)
        return (at_S < ends_B1) & (at_S >= ends_B1 - count)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()})


def load_template(path: Path) -> dict[str, str]:
    """Read a template file: one text a mode, with each of its slots exactly once.

    Raises:
        CheckpointError: the file is missing, is not JSON, or a mode's slots are not as they must be.
    """
    try:
        template = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"the prompt template {path} cannot be read", got=problem) from problem
    for mode, slots in _SLOTS.items():
        text = template.get(mode) if isinstance(template, dict) else None
        found = re.findall(r"\{(\w+)\}", text) if isinstance(text, str) else repr(text)
        if found != slots:
            raise CheckpointError(
                f"the prompt template {path} is wrong for mode {mode!r}",
                got=found,
                wanted=f"the slots {slots}, in order",
            )
    return template


DEFAULT_TEMPLATE = Path(__file__).with_name("prompt.json")


VideoSpans = Callable[[int], list[str]]
"""From a number of frames to the texts that lead the spans its visual tokens are divided into."""


def one_span(frames: int) -> list[str]:
    """Qwen2.5-VL: all of a video's tokens in one span, time told by position ids."""
    return [""]


def span_a_patch(frames: int) -> list[str]:
    """Qwen3-VL: a span for every two frames, led by its time in seconds.

    The frame rate is not told to the prompter. Two frames a second are assumed, the rate at which Qwen3-VL samples
    videos, and what the published position ids of Qwen2.5-VL amount to.
    """
    times = [index / 2 for index in range(frames)]
    times += times[-1:] * (frames % 2)
    return [f"<{(a + b) / 2:.1f} seconds>" for a, b in zip(times[::2], times[1::2], strict=True)]


class Prompter:
    """Builds prompts. One is made for an MLLM, with its tokenizer and its image processor's settings."""

    def __init__(
        self,
        tokenizer: Any,
        image_processor: Any,
        video_processor: Any,
        template: dict[str, str],
        limits: VisionLimits,
        spans: VideoSpans,
    ) -> None:
        self.tokenizer, self.template, self.limits, self.spans = tokenizer, template, limits, spans
        self.image_processor, self.video_processor = image_processor, video_processor
        self.factor = image_processor.patch_size * image_processor.merge_size
        special = {"image": "<|image_pad|>", "video": "<|video_pad|>", "start": "<|vision_start|>"}
        special |= {"end": "<|vision_end|>", "query": PLACEHOLDER}
        self.ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in special.items()}
        missing = [
            special[name] for name, index in self.ids.items() if index is None or index == tokenizer.unk_token_id
        ]
        if missing:
            raise CheckpointError(
                "the MLLM's tokenizer lacks tokens", got=", ".join(missing), fix="use a Qwen-VL tokenizer"
            )

    def __call__(
        self,
        sources: Sequence[Frames],
        instructions: Sequence[str],
        references: Sequence[Sequence[NDArray[np.uint8]]],
        mode: Mode,
        num_queries: int,
    ) -> Prompt:
        """Prompt of a batch, all samples of one mode.

        Args:
            sources: each sample's video (F, H, W, 3); one frame is read as an image.
            instructions: what to do; empty where it is left out, for guidance.
            references: each sample's reference images (H, W, 3), none unless the mode is "reference".
            mode: chooses the template.
            num_queries: placeholders at the end.

        Raises:
            InputError: references that do not fit the mode, or an instruction that is not text throughout.
        """
        rows = [self._row(*sample, mode, num_queries) for sample in zip(sources, instructions, references, strict=True)]
        images = [picture for row in rows for picture in row.images]
        videos = [video for row in rows for video in row.videos]
        # One call a picture: the library stacks pictures of equal size, which mixes up their order no more than ours.
        image_inputs = [self.image_processor(images=[i], return_tensors="pt", **_ALREADY_SIZED) for i in images]
        video_inputs = [
            self.video_processor(
                videos=[torch.from_numpy(v).permute(0, 3, 1, 2)],
                return_tensors="pt",
                do_sample_frames=False,
                **_ALREADY_SIZED,
            )
            for v in videos
        ]
        pad = self.tokenizer.pad_token_id or 0
        ids = _pad([row.ids for row in rows], pad)
        kinds = {1: self.ids["image"], 2: self.ids["video"]}
        return Prompt(
            input_ids_BS=ids,
            attention_mask_BS=_pad([[1] * len(row.ids) for row in rows], 0),
            queries_BS=_pad([row.queries for row in rows], 0).bool(),
            references_BS=_pad([row.references for row in rows], 0).bool(),
            token_types_BS=sum(
                (kind * (ids == token).int() for kind, token in kinds.items()), torch.zeros_like(ids).int()
            ),
            pixel_values=torch.cat([i["pixel_values"] for i in image_inputs]) if images else None,
            image_grid_thw=torch.cat([i["image_grid_thw"] for i in image_inputs]) if images else None,
            pixel_values_videos=torch.cat([v["pixel_values_videos"] for v in video_inputs]) if videos else None,
            video_grid_thw=torch.cat([v["video_grid_thw"] for v in video_inputs]) if videos else None,
        )

    def _row(
        self, source: Frames, instruction: str, references: Sequence[NDArray[np.uint8]], mode: Mode, num_queries: int
    ) -> _Row:
        if (mode == "reference") != bool(references):
            raise InputError(f"mode {mode!r} does not go with {len(references)} reference images")
        if any("\ud800" <= char <= "\udfff" for char in instruction):
            # Half of a pair, as broken JSON or a wrongly decoded command line has it: no tokeniser takes it.
            raise InputError("the instruction holds a lone surrogate, which is no character", got=ascii(instruction))
        row = _Row()
        for part in re.split(r"(\{\w+\})", self.template[mode]):
            match part:
                case "{source}" if len(source) == 1:
                    self._add_image(row, self.resize_image(source[0]))
                case "{source}":
                    self._add_video(row, self.resize_video(source))
                case "{instruction}":
                    # Never parsed for special tokens: an instruction is data.
                    row.add(
                        self.tokenizer.encode(instruction.strip(), add_special_tokens=False, split_special_tokens=True)
                    )
                case "{references}":
                    for reference in references:
                        limit = self.limits.max_reference_tokens * self.factor**2
                        self._add_image(row, self.resize_image(reference, limit), is_reference=True)
                case "{queries}":
                    row.add([self.ids["query"]] * num_queries, queries=True)
                case _:
                    row.add(self.tokenizer.encode(part, add_special_tokens=False))
        return row

    def _add_image(self, row: _Row, image: NDArray[np.uint8], is_reference: bool = False) -> None:
        tokens = image.shape[0] * image.shape[1] // self.factor**2
        row.add([self.ids["start"]])
        row.add([self.ids["image"]] * tokens, references=is_reference)
        row.add([self.ids["end"]])
        row.images.append(image)

    def _add_video(self, row: _Row, frames: Frames) -> None:
        pairs = -(-len(frames) // self.video_processor.temporal_patch_size)
        tokens = pairs * frames.shape[1] * frames.shape[2] // self.factor**2
        leads = self.spans(len(frames))
        for lead in leads:
            row.add(self.tokenizer.encode(lead, add_special_tokens=False))
            row.add([self.ids["start"], *[self.ids["video"]] * (tokens // len(leads)), self.ids["end"]])
        row.videos.append(frames)

    def resize_image(self, image: NDArray[np.uint8], max_pixels: int | None = None) -> NDArray[np.uint8]:
        """An image at the size the MLLM reads it: sides multiples of the vision token, 4 tokens at least."""
        area = self.factor**2
        limit = 16384 * area if max_pixels is None else max_pixels
        size = smart_resize(*image.shape[:2], factor=self.factor, min_pixels=4 * area, max_pixels=limit)
        return resize(image[None], *size)[0]

    def resize_video(self, frames: Frames) -> Frames:
        """At most `max_frames` frames, evenly sampled, resized in the two steps of the published reader."""
        if len(frames) > self.limits.max_frames:
            frames = frames[np.linspace(0, len(frames) - 1, self.limits.max_frames).round().astype(int)]
        limits, factor = self.limits, self.factor
        coarse = smart_resize(
            *frames.shape[1:3],
            factor=2 * factor,
            min_pixels=min(4 * (2 * factor) ** 2, limits.min_pixels_per_frame),
            max_pixels=limits.max_pixels_per_frame,
        )
        # The reader's own budget: 768 visual tokens a frame, less when many frames share the total of 115200.
        budget = min(768 * factor**2, 115200 * factor**2 / len(frames) * 2)
        fine = smart_resize(
            *coarse,
            factor=factor,
            min_pixels=limits.min_pixels_per_frame,
            max_pixels=int(min(limits.max_pixels_per_frame, max(budget, int(1.05 * limits.min_pixels_per_frame)))),
        )
        return _resize_at_float(resize(frames, *coarse), *fine)


_ALREADY_SIZED = {"do_resize": False}


def gather_tokens(hidden_BSM: Tensor, where_BS: Tensor) -> tuple[Tensor, Tensor | None]:
    """The marked positions of every sample, padded to the longest (B, R, M), and the mask of the real ones (B, R).

    The mask is None when none is padding.
    """
    counts = where_BS.sum(dim=1).tolist()
    rows = [states[mask] for states, mask in zip(hidden_BSM, where_BS, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    if len(set(counts)) == 1:
        return padded, None
    mask = torch.arange(padded.shape[1], device=padded.device) < where_BS.sum(dim=1, keepdim=True)
    return padded, mask


def _resize_at_float(frames: Frames, height: int, width: int) -> Frames:
    """The published reader's second resize: bicubic at float32, where the first (and every image's) is Pillow's."""
    if frames.shape[1:3] == (height, width):
        return frames
    pixels_FCHW = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(pixels_FCHW, (height, width), mode="bicubic", antialias=True)
    return resized.clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy()


class _Row:
    """One sample's tokens while they are being collected."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.queries: list[int] = []
        self.references: list[int] = []
        self.images: list[NDArray[np.uint8]] = []
        self.videos: list[Frames] = []

    def add(self, ids: list[int], *, queries: bool = False, references: bool = False) -> None:
        self.ids += ids
        self.queries += [int(queries)] * len(ids)
        self.references += [int(references)] * len(ids)


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
