"""The frozen multimodal LLM that reads video, instruction, reference and the learnable queries.

transformers' Qwen2.5-VL, run without its language head. B samples, S tokens, Q queries, R reference
tokens (padded), M the MLLM's width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2VLVideoProcessor

from kiwi.errors import CheckpointError
from kiwi.models.hub import require_source
from kiwi.models.prompting import DEFAULT_TEMPLATE, Prompt, Prompter, VisionLimits, load_template
from kiwi.models.tiny_qwen import tiny_config, tiny_processors
from kiwi.spec import Spec


@dataclass(frozen=True, kw_only=True)
class MllmSpec(Spec, ABC):
    """The family of multimodal LLMs.

    Args:
        limits: how much of the pictures it reads.
    """

    limits: VisionLimits = field(default_factory=VisionLimits)

    @abstractmethod
    def build(self) -> MllmEncoder:
        """The encoder, weights included."""


@dataclass(frozen=True, kw_only=True)
class QwenVL(MllmSpec):
    """A trained Qwen2.5-VL.

    Args:
        path: folder with config, weights, tokenizer and preprocessor settings, or a hub id. A file prompt.json in
            the folder replaces the standard wording.
        dtype: type its weights are kept in; it is frozen, so bfloat16 halves the memory at no cost to training.
    """

    path: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    def build(self) -> MllmEncoder:
        require_source(self.path, "", "MLLM", "name a folder with a Qwen2.5-VL, or a hub id")
        try:
            model = Qwen2_5_VLModel.from_pretrained(self.path, dtype=getattr(torch, self.dtype), use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(self.path, trust_remote_code=False)
            images = AutoImageProcessor.from_pretrained(self.path, trust_remote_code=False)
        except (OSError, ValueError) as problem:
            first = str(problem).strip().splitlines()[0]
            raise CheckpointError(f"the MLLM {self.path!r} cannot be loaded", got=first) from problem
        template = Path(self.path) / "prompt.json"
        return MllmEncoder(model, tokenizer, images, self.limits, template if template.is_file() else DEFAULT_TEMPLATE)


@dataclass(frozen=True, kw_only=True)
class TinyQwen(MllmSpec):
    """An untrained Qwen2.5-VL of laptop size with a byte-level tokenizer: the same code path, random features.

    Args:
        hidden_size: the language model's width M.
        layers: of the language model.
        vision_layers: of the vision tower.
    """

    hidden_size: int = 64
    layers: int = 2
    vision_layers: int = 2
    limits: VisionLimits = field(
        default_factory=lambda: VisionLimits(
            max_frames=4, max_pixels_per_frame=84 * 84, min_pixels_per_frame=28 * 28, max_reference_tokens=16
        )
    )

    def build(self) -> MllmEncoder:
        tokenizer, images = tiny_processors()
        model = Qwen2_5_VLModel(tiny_config(self.hidden_size, self.layers, self.vision_layers, tokenizer))
        return MllmEncoder(model, tokenizer, images, self.limits, DEFAULT_TEMPLATE)


class MllmFeatures(NamedTuple):
    """Hidden states after the last layer's final norm."""

    queries_BQM: Tensor
    references_BRM: Tensor
    references_mask_BR: Tensor | None
    """True where a reference token is real; None when none is padding."""


class MllmEncoder(nn.Module):
    """Prompt and queries in, features of the queries and of the reference's visual tokens out."""

    def __init__(
        self, model: Qwen2_5_VLModel, tokenizer: Any, image_processor: Any, limits: VisionLimits, template: Path
    ) -> None:
        super().__init__()
        self.model = model
        self.hidden_size = int(model.config.text_config.hidden_size)
        sizes = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")
        # Frames arrive at their final size (see Prompter.resize_video), so the library's own cap stays out of it.
        settings = {name: getattr(image_processor, name) for name in sizes}
        video_processor = Qwen2VLVideoProcessor(**settings, cap_pixels_per_frame=False)
        self.prompter = Prompter(tokenizer, image_processor, video_processor, load_template(template), limits)

    @property
    def config(self) -> Qwen2_5_VLConfig:
        """The library's configuration of the model."""
        return self.model.config

    def forward(self, prompt: Prompt, queries_QM: Tensor) -> MllmFeatures:
        """Read the prompt with the query vectors at their placeholders.

        Positions are Qwen's multimodal ones; attention is causal, so that the queries, which come last, see
        everything, and padding on the right is seen by nothing.
        """
        batch = prompt.input_ids_BS.shape[0]
        embeds = self.model.get_input_embeddings()(prompt.input_ids_BS)
        queries = queries_QM.to(embeds.dtype).expand(batch, *queries_QM.shape)
        embeds = embeds.masked_scatter(prompt.queries_BS[..., None], queries)
        positions, _ = self.model.get_rope_index(
            prompt.input_ids_BS,
            mm_token_type_ids=prompt.token_types_BS,
            image_grid_thw=prompt.image_grid_thw,
            video_grid_thw=prompt.video_grid_thw,
            attention_mask=prompt.attention_mask_BS,
        )
        hidden = self.model(
            input_ids=prompt.input_ids_BS,
            inputs_embeds=embeds,
            attention_mask=prompt.attention_mask_BS,
            position_ids=positions,
            pixel_values=prompt.pixel_values,
            pixel_values_videos=prompt.pixel_values_videos,
            image_grid_thw=prompt.image_grid_thw,
            video_grid_thw=prompt.video_grid_thw,
            use_cache=False,
        ).last_hidden_state
        # Every sample of a batch has the same number of queries, so they stack; references are padded.
        queries_out = hidden[prompt.queries_BS].unflatten(0, (batch, -1))
        return MllmFeatures(queries_out, *_gather(hidden, prompt.references_BS))

    def save(self, folder: Path) -> None:
        """Write model, tokenizer, preprocessor settings and prompt template, as `QwenVL(path=folder)` reads them."""
        from kiwi.media.files import write_json

        self.model.save_pretrained(folder, safe_serialization=True)
        self.prompter.tokenizer.save_pretrained(folder)
        self.prompter.image_processor.save_pretrained(folder)
        write_json(folder / "prompt.json", self.prompter.template)


def _gather(hidden_BSM: Tensor, where_BS: Tensor) -> tuple[Tensor, Tensor | None]:
    """The marked positions of every sample, padded to the longest, and the mask of the real ones."""
    counts = where_BS.sum(dim=1).tolist()
    rows = [states[mask] for states, mask in zip(hidden_BSM, where_BS, strict=True)]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    if len(set(counts)) == 1:
        return padded, None
    mask = torch.arange(padded.shape[1], device=padded.device)[None, :] < where_BS.sum(dim=1, keepdim=True)
    return padded, mask
