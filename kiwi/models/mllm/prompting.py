"""Prompts: the MLLM's token sequence from source frames, an instruction and reference images.

The wording comes from a template file, prompt.json in the MLLM's folder. Instructions are tokenised as plain text, so
that special tokens in them have no effect. B samples, S tokens (padded right).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from kiwi.encoded import IMAGE, VIDEO, Pixels, PixelsOrFeatures, TaskKind, VisionFeatures
from kiwi.errors import CheckpointError, InputError
from kiwi.models.mllm.vision_input import VisionInput, VisionPreprocessor
from kiwi.reading import require_text
from kiwi.weights.files import read_json

_SLOTS = {
    "image": ["source", "instruction", "queries"],
    "video": ["source", "instruction", "queries"],
    "reference": ["source", "instruction", "references", "queries"],
}
"""Slots of the template of each task kind."""

Visual = VisionInput | VisionFeatures
"""An image or video of a prompt: resized pixels, or cached vision features."""


@dataclass
class Prompt:
    """A tokenised batch of prompts.

    Grids (frames, rows, columns) count vision patches. There are grids for all images and videos, but pixel values only
    for those without cached features.
    """

    input_ids_BS: Tensor
    attention_mask_BS: Tensor
    queries_BS: Tensor
    """True at the placeholders for queries."""
    references_BS: Tensor
    """True at the visual tokens of the reference images."""
    token_types_BS: Tensor
    """0 text, 1 image, 2 video."""
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None
    pixel_values_videos: Tensor | None
    video_grid_thw: Tensor | None
    cached_image_features: tuple[Tensor | None, ...] = ()
    """Features (L, N, M) of each image, or None if they are not cached; empty if no image is."""
    cached_video_features: tuple[Tensor | None, ...] = ()

    def tail_BS(self, count: int) -> Tensor:
        """Mask (B, S) that is True at the last `count` tokens of each sample, not counting padding."""
        ends_B1 = self.attention_mask_BS.sum(dim=1, keepdim=True)
        positions_S = torch.arange(self.input_ids_BS.shape[1], device=self.input_ids_BS.device)
        return (positions_S < ends_B1) & (positions_S >= ends_B1 - count)

    def to(self, device: torch.device | str) -> Self:
        """Copy the prompt to a device."""

        def move(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(move(item) for item in value)
            return value.to(device) if isinstance(value, Tensor) else value

        return type(self)(**{f.name: move(getattr(self, f.name)) for f in fields(self)})


def read_template(folder: Path | None = None) -> dict[str, str]:
    """Read the template of a model or tokenizer folder: its prompt.json, or the default if it has none.

    A template has one text per task kind, with each of its slots exactly once.

    Raises:
        CheckpointError: if the file cannot be read or has wrong slots.
    """
    path = Path(__file__).with_name("prompt.json")
    if folder is not None and (folder / "prompt.json").is_file():
        path = folder / "prompt.json"
    template = read_json(path)
    for task, slots in _SLOTS.items():
        text = template.get(task)
        got = re.findall(r"\{(\w+)\}", text) if isinstance(text, str) else repr(text)
        if got != slots:
            message = f"the prompt template {path} has wrong slots for the task {task!r}"
            raise CheckpointError(message, code="invalid-template", got=got, expected=f"{slots}, in this order")
    return template


VideoSpans = Callable[[int], list[str]]
"""Function from a number of frames to the texts before each of the spans that contain the video's visual tokens."""


def single_span(frames: int) -> list[str]:
    """Put all tokens of a video into one span, as in Qwen2.5-VL, where position ids encode time."""
    return [""]


def span_per_temporal_patch(frames: int) -> list[str]:
    """Put every two frames into a span that follows their time in seconds, as in Qwen3-VL.

    Two frames per second are assumed, whatever the frame rate: Qwen3-VL samples videos at this rate, and the published
    position ids of Qwen2.5-VL imply it.
    """
    times = [index / 2 for index in range(frames)]
    times += times[-1:] * (frames % 2)
    return [f"<{(first + second) / 2:.1f} seconds>" for first, second in zip(times[::2], times[1::2], strict=True)]


def require_distinct_tokens(tokenizer: Any) -> None:
    """Raise a CheckpointError if a tokenizer has the same tokens, or none, for different words, so hides the text."""
    words = ("red", "blue", "remove", "snow")
    tokens = {tuple(tokenizer.encode(word, add_special_tokens=False)) for word in words} - {()}
    if len(tokens) < len(words):
        raise CheckpointError(
            "the tokenizer cannot distinguish words",
            code="mismatched-tokenizer",
            got=f"{len(tokenizer)} tokens, and the same for {' and '.join(words)}",
            fix="use the tokenizer of the model",
        )


class Prompter:
    """Builds prompts for an MLLM."""

    def __init__(
        self, tokenizer: Any, preprocessor: VisionPreprocessor, template: dict[str, str], spans: VideoSpans
    ) -> None:
        self.tokenizer, self.preprocessor, self.template, self.spans = tokenizer, preprocessor, template, spans
        special = {"image": "<|image_pad|>", "video": "<|video_pad|>", "start": "<|vision_start|>"}
        # The published code replaces the embeddings of this token by queries.
        special |= {"end": "<|vision_end|>", "query": "<|object_ref_start|>"}
        self.ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in special.items()}
        unknown = (None, tokenizer.unk_token_id)
        if missing := [special[name] for name, index in self.ids.items() if index in unknown]:
            message = f"the MLLM's tokenizer lacks the special tokens {', '.join(missing)}"
            raise CheckpointError(message, code="missing-tokens", fix="use a Qwen-VL tokenizer")
        require_distinct_tokens(tokenizer)

    def __call__(
        self,
        sources: Sequence[PixelsOrFeatures],
        instructions: Sequence[str],
        references: Sequence[Sequence[PixelsOrFeatures]],
        task: TaskKind,
        num_queries: int,
    ) -> Prompt:
        """Build the prompts of a batch, whose samples are all of one task kind.

        Args:
            sources: each sample's video (F, H, W, 3) or cached vision features; one frame is an image.
            instructions: each sample's edit instruction; empty if dropped.
            references: each sample's reference images (H, W, 3) or their cached vision features; empty unless the task
                is "reference".
            task: selects the template.
            num_queries: number of placeholders for queries.

        Raises:
            InputError: if the references do not fit the task, or an instruction is too long or not valid Unicode.
        """
        samples = zip(sources, instructions, references, strict=True)
        rows = [self._build_row(*sample, task, num_queries) for sample in samples]
        visuals = [visual for row in rows for visual in row.visuals]
        images, videos = ([visual for visual in visuals if visual.kind == kind] for kind in (IMAGE, VIDEO))
        ids = _pad_rows([row.ids for row in rows], self.tokenizer.pad_token_id or 0)
        return Prompt(
            input_ids_BS=ids,
            attention_mask_BS=_pad_rows([[1] * len(row.ids) for row in rows], 0),
            queries_BS=_pad_rows([row.queries for row in rows], 0).bool(),
            references_BS=_pad_rows([row.references for row in rows], 0).bool(),
            token_types_BS=IMAGE * (ids == self.ids["image"]).int() + VIDEO * (ids == self.ids["video"]).int(),
            pixel_values=self._stack_patches(images),
            image_grid_thw=self._stack_grids(images),
            pixel_values_videos=self._stack_patches(videos),
            video_grid_thw=self._stack_grids(videos),
            cached_image_features=_cached_features(images),
            cached_video_features=_cached_features(videos),
        )

    def _stack_patches(self, visuals: Sequence[Visual]) -> Tensor | None:
        # One call per image to keep their order, because transformers groups images of equal size.
        patches = [self.preprocessor.to_patches(visual) for visual in visuals if isinstance(visual, VisionInput)]
        return torch.cat(patches) if patches else None

    def _stack_grids(self, visuals: Sequence[Visual]) -> Tensor | None:
        return torch.tensor([self.preprocessor.patch_grid(visual.size) for visual in visuals]) if visuals else None

    def _build_row(
        self,
        source: PixelsOrFeatures,
        instruction: str,
        references: Sequence[PixelsOrFeatures],
        task: TaskKind,
        num_queries: int,
    ) -> _Row:
        if (task == TaskKind.reference) != bool(references):
            expected = "at least 1" if task == TaskKind.reference else "0"
            message = f"wrong number of reference images for the task {str(task)!r}"
            raise InputError(message, code="mismatched-references", got=len(references), expected=expected)
        require_text(instruction)
        row = _Row()
        for part in re.split(r"(\{\w+\})", self.template[task]):
            match part:
                case "{source}":
                    self._add_visual(row, source, self.preprocessor.prepare_source)
                case "{instruction}":
                    # An instruction is data: it is never parsed for special tokens.
                    options = {"add_special_tokens": False, "split_special_tokens": True}
                    row.add(self.tokenizer.encode(instruction.strip(), **options))
                case "{references}":
                    for image in references:
                        self._add_visual(row, image, self.preprocessor.prepare_reference, is_reference=True)
                case "{queries}":
                    row.add([self.ids["query"]] * num_queries, queries=True)
                case _:
                    row.add(self.tokenizer.encode(part, add_special_tokens=False))
        return row

    def _add_visual(
        self, row: _Row, frames: PixelsOrFeatures, prepare: Callable[[Pixels], VisionInput], is_reference: bool = False
    ) -> None:
        visual = frames if isinstance(frames, VisionFeatures) else prepare(frames)
        row.visuals.append(visual)
        headings, kind = (self.spans(visual.size[0]), "video") if visual.kind == VIDEO else ([""], "image")
        tokens = self.preprocessor.num_tokens(visual.size) // len(headings)
        for heading in headings:
            row.add(self.tokenizer.encode(heading, add_special_tokens=False))
            row.add([self.ids["start"]])
            row.add([self.ids[kind]] * tokens, references=is_reference)
            row.add([self.ids["end"]])


def gather_tokens(hidden_BSM: Tensor, mask_BS: Tensor) -> tuple[Tensor, Tensor | None]:
    """Select the hidden states at a mask's R positions per sample, padded to the largest R: (B, R, M).

    The second result is a mask (B, R) that is False at padding, or None if there is no padding.
    """
    counts = mask_BS.sum(dim=1).tolist()
    rows = [states_SM[mask_S] for states_SM, mask_S in zip(hidden_BSM, mask_BS, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    if len(set(counts)) == 1:
        return padded, None
    return padded, torch.arange(padded.shape[1], device=padded.device) < mask_BS.sum(dim=1, keepdim=True)


class _Row:
    """Tokens and visuals of one sample, collected while its prompt is built."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.queries: list[int] = []
        self.references: list[int] = []
        self.visuals: list[Visual] = []

    def add(self, ids: list[int], *, queries: bool = False, references: bool = False) -> None:
        self.ids += ids
        self.queries += [int(queries)] * len(ids)
        self.references += [int(references)] * len(ids)


def _pad_rows(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def _cached_features(visuals: Sequence[Visual]) -> tuple[Tensor | None, ...]:
    return tuple(visual.features_LNM if isinstance(visual, VisionFeatures) else None for visual in visuals)
