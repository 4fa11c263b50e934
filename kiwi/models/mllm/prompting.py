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
from typing import Any, Self

import torch
from torch import Tensor

from kiwi.encoded import Pixels, TaskKind, VisionFeatures
from kiwi.errors import CheckpointError, InputError
from kiwi.models.mllm.positions import IMAGE, VIDEO
from kiwi.models.mllm.vision_input import VisionInput, VisionPreprocessor

_SLOTS = {
    "image": ["source", "instruction", "queries"],
    "video": ["source", "instruction", "queries"],
    "reference": ["source", "instruction", "references", "queries"],
}
PLACEHOLDER = "<|object_ref_start|>"
"""The token whose embedding is replaced by a query (the published choice)."""


@dataclass
class Prompt:
    """A batch as the MLLM reads it. Grids are (frames, rows, columns) in vision patches.

    Pixels are those of the pictures that the tower has not seen yet, grids those of all.
    """

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
    cached_image_features: tuple[Tensor | None, ...] = ()
    """Features (L, N, M) of each image, None for one that is still to be seen; nothing at all if none was."""
    cached_video_features: tuple[Tensor | None, ...] = ()

    def tail_BS(self, count: int) -> Tensor:
        """True at the last `count` tokens of each sample, padding not counted."""
        ends_B1 = self.attention_mask_BS.sum(dim=1, keepdim=True)
        at_S = torch.arange(self.input_ids_BS.shape[1], device=self.input_ids_BS.device)
        return (at_S < ends_B1) & (at_S >= ends_B1 - count)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""

        def moved(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(moved(one) for one in value)
            return value.to(device) if isinstance(value, Tensor) else value

        return type(self)(**{f.name: moved(getattr(self, f.name)) for f in fields(self)})


def read_template(path: Path) -> dict[str, str]:
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


def template_path(folder: Path) -> Path:
    """The template file of a model's or tokenizer's folder: its own prompt.json, or else the standard wording."""
    return own if (own := folder / "prompt.json").is_file() else DEFAULT_TEMPLATE


VideoSpans = Callable[[int], list[str]]
"""From a number of frames to the texts that lead the spans its visual tokens are divided into."""


def single_span(frames: int) -> list[str]:
    """Qwen2.5-VL: all of a video's tokens in one span, time told by position ids."""
    return [""]


def span_per_temporal_patch(frames: int) -> list[str]:
    """Qwen3-VL: a span for every two frames, led by its time in seconds.

    The frame rate is not told to the prompter. Two frames a second are assumed, the rate at which Qwen3-VL samples
    videos, and what the published position ids of Qwen2.5-VL amount to.
    """
    times = [index / 2 for index in range(frames)]
    times += times[-1:] * (frames % 2)
    return [f"<{(a + b) / 2:.1f} seconds>" for a, b in zip(times[::2], times[1::2], strict=True)]


class Prompter:
    """Builds prompts. One is made for an MLLM, with its tokenizer and its way with pictures."""

    def __init__(
        self,
        tokenizer: Any,
        preprocessor: VisionPreprocessor,
        template: dict[str, str],
        spans: VideoSpans,
    ) -> None:
        self.tokenizer, self.preprocessor, self.template, self.spans = tokenizer, preprocessor, template, spans
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
        sources: Sequence[Pixels | VisionFeatures],
        instructions: Sequence[str],
        references: Sequence[Sequence[Pixels | VisionFeatures]],
        task: TaskKind,
        num_queries: int,
    ) -> Prompt:
        """Prompt of a batch, all samples of one task kind.

        Args:
            sources: each sample's video (F, H, W, 3); one frame is read as an image.
            instructions: what to do; empty where it is left out, for guidance.
            references: each sample's reference images (H, W, 3), none unless the task is "reference". What the tower
                saw of a source or a reference may stand in its place.
            task: chooses the template.
            num_queries: placeholders at the end.

        Raises:
            InputError: references that do not fit the task, or an instruction that is not text throughout.
        """
        rows = [self._row(*sample, task, num_queries) for sample in zip(sources, instructions, references, strict=True)]
        pictures = [picture for row in rows for picture in row.images]
        images, videos = ([p for p in pictures if p.kind == kind] for kind in (IMAGE, VIDEO))
        ids = _pad([row.ids for row in rows], self.tokenizer.pad_token_id or 0)
        kinds = {IMAGE: self.ids["image"], VIDEO: self.ids["video"]}
        return Prompt(
            input_ids_BS=ids,
            attention_mask_BS=_pad([[1] * len(row.ids) for row in rows], 0),
            queries_BS=_pad([row.queries for row in rows], 0).bool(),
            references_BS=_pad([row.references for row in rows], 0).bool(),
            token_types_BS=sum(
                (kind * (ids == token).int() for kind, token in kinds.items()), torch.zeros_like(ids).int()
            ),
            pixel_values=self._patches(images),
            image_grid_thw=self._grids(images),
            pixel_values_videos=self._patches(videos),
            video_grid_thw=self._grids(videos),
            cached_image_features=_features(images),
            cached_video_features=_features(videos),
        )

    def _patches(self, pictures: Sequence[VisionInput | VisionFeatures]) -> Tensor | None:
        # One call a picture: the library stacks pictures of equal size, which mixes up their order no more than ours.
        found = [self.preprocessor.to_patches(picture) for picture in pictures if isinstance(picture, VisionInput)]
        return torch.cat(found) if found else None

    def _grids(self, pictures: Sequence[VisionInput | VisionFeatures]) -> Tensor | None:
        return torch.tensor([self.preprocessor.patch_grid(picture.size) for picture in pictures]) if pictures else None

    def _row(
        self,
        source: Pixels | VisionFeatures,
        instruction: str,
        references: Sequence[Pixels | VisionFeatures],
        task: TaskKind,
        num_queries: int,
    ) -> _Row:
        if (task == TaskKind.reference) != bool(references):
            raise InputError(f"the task '{task}' does not go with {len(references)} reference images")
        if any("\ud800" <= char <= "\udfff" for char in instruction):
            # Half of a pair, as broken JSON or a wrongly decoded command line has it: no tokeniser takes it.
            raise InputError("the instruction holds a lone surrogate, which is no character", got=ascii(instruction))
        row = _Row()
        for part in re.split(r"(\{\w+\})", self.template[task]):
            match part:
                case "{source}":
                    self._add(
                        row, source if isinstance(source, VisionFeatures) else self.preprocessor.prepare_source(source)
                    )
                case "{instruction}":
                    # Never parsed for special tokens: an instruction is data.
                    row.add(
                        self.tokenizer.encode(instruction.strip(), add_special_tokens=False, split_special_tokens=True)
                    )
                case "{references}":
                    for reference in references:
                        shown = (
                            reference
                            if isinstance(reference, VisionFeatures)
                            else self.preprocessor.prepare_reference(reference)
                        )
                        self._add(row, shown, is_reference=True)
                case "{queries}":
                    row.add([self.ids["query"]] * num_queries, queries=True)
                case _:
                    row.add(self.tokenizer.encode(part, add_special_tokens=False))
        return row

    def _add(self, row: _Row, picture: VisionInput | VisionFeatures, is_reference: bool = False) -> None:
        row.images.append(picture)
        leads, kind = (self.spans(picture.size[0]), "video") if picture.kind == VIDEO else ([""], "image")
        tokens = self.preprocessor.num_tokens(picture.size) // len(leads)
        for lead in leads:
            row.add(self.tokenizer.encode(lead, add_special_tokens=False))
            row.add([self.ids["start"]])
            row.add([self.ids[kind]] * tokens, references=is_reference)
            row.add([self.ids["end"]])


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


class _Row:
    """One sample's tokens while they are being collected."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.queries: list[int] = []
        self.references: list[int] = []
        self.images: list[VisionInput | VisionFeatures] = []

    def add(self, ids: list[int], *, queries: bool = False, references: bool = False) -> None:
        self.ids += ids
        self.queries += [int(queries)] * len(ids)
        self.references += [int(references)] * len(ids)


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def _features(pictures: Sequence[VisionInput | VisionFeatures]) -> tuple[Tensor | None, ...]:
    return tuple(picture.features_LNM if isinstance(picture, VisionFeatures) else None for picture in pictures)
