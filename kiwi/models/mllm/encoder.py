"""The multimodal LLM: computes hidden states from source frames, instruction, reference images and queries.

It is Qwen2.5-VL or Qwen3-VL of transformers, without its language head. B samples, S tokens, Q queries, M the MLLM's
width.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from kiwi.encoded import IMAGE, VIDEO, VisionFeatures
from kiwi.errors import CheckpointError, KiwiError, SpecError, first_line
from kiwi.media.files import write_json
from kiwi.models.mllm.prefix_cache import LanguageModelForward, LanguageModelInput, full_forward, prefix_cached_forward
from kiwi.models.mllm.prompting import Prompt, Prompter, VideoSpans, read_template, single_span, span_per_temporal_patch
from kiwi.models.mllm.vision import PromptVisionFeatures, compute_positions, encode_vision, grids_per_temporal_patch
from kiwi.models.mllm.vision_input import VisionInput, VisionLimits, VisionPreprocessor
from kiwi.models.tuning import Frozen, TuningSpec
from kiwi.spec import Spec, to_dict
from kiwi.weights.adapters import is_adapter, without_base_layer
from kiwi.weights.files import read_json, require_float_dtypes, write_weights
from kiwi.weights.headers import read_headers, require_plausible_sizes
from kiwi.weights.hub import locate
from kiwi.weights.strict import Mismatch, fingerprint

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""Name endings of the linear layers of the language model that get adapters, as in the published training."""


class Generation(NamedTuple):
    """Properties that differ between the generations of Qwen-VL."""

    model: type[PreTrainedModel]
    spans: VideoSpans
    """Function that divides a video's tokens in a prompt into spans."""
    video_grids: Callable[[Tensor], Tensor]
    """Function from the grids of videos to the grids of their spans."""


GENERATIONS = {
    "qwen2_5_vl": Generation(transformers.Qwen2_5_VLModel, single_span, lambda grids_V3: grids_V3),
    "qwen3_vl": Generation(transformers.Qwen3VLModel, span_per_temporal_patch, grids_per_temporal_patch),
}
"""Generations by `model_type`, a field of the model's configuration."""


@dataclass(frozen=True, kw_only=True)
class MllmSpec(Spec, ABC):
    """Base class of all specs of multimodal LLMs.

    Args:
        limits: limits on the frames and pixels of its input.
        tuning: how the language model is trained; the vision tower is always frozen.
    """

    limits: VisionLimits = field(default_factory=VisionLimits)
    tuning: TuningSpec = field(default_factory=Frozen)

    @abstractmethod
    def build(self) -> MllmEncoder:
        """Build the encoder with its weights and adapters."""


@dataclass(frozen=True, kw_only=True)
class QwenVL(MllmSpec):
    """A pretrained Qwen2.5-VL or Qwen3-VL.

    Args:
        path: folder with configuration, weights, tokenizer and preprocessor settings, or a hub id such as
            "Qwen/Qwen2.5-VL-3B-Instruct", the published MLLM. A file prompt.json in the folder replaces the default
            prompt template.
        dtype: dtype of the weights; bfloat16 halves the memory, and is as good for training while they are frozen.
    """

    path: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    def build(self) -> MllmEncoder:
        folder = locate(self.path, "MLLM", "pass a folder with a Qwen-VL, or a hub id")
        # Before transformers, which would follow an index to paths outside the folder, and cast quantised weights.
        dtypes = {name: dtype for name, (_, dtype) in read_headers(folder).items()}
        require_float_dtypes(dtypes, f"the MLLM {self.path!r}")
        require_plausible_sizes(read_json(file) if (file := folder / "config.json").is_file() else {}, folder)
        try:
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
            if config.model_type not in GENERATIONS:
                message = f"the MLLM {self.path!r} has the unsupported architecture {config.model_type}"
                expected = f"one of {', '.join(GENERATIONS)}"
                raise CheckpointError(message, code="unsupported-mllm", expected=expected)
            model, info = GENERATIONS[config.model_type].model.from_pretrained(
                folder,
                dtype=getattr(torch, self.dtype),
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            image_processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        except KiwiError:
            raise
        except Exception as error:  # damaged files make transformers and tokenizers raise any type, even Exception
            got = f"{type(error).__name__}: {first_line(error)}"
            message = f"the MLLM {self.path!r} cannot be loaded"
            raise CheckpointError(message, code="unreadable-model", got=got) from error
        _require_all_weights(model, info, self.path)
        if max(tokenizer.get_vocab().values()) >= (rows := model.get_input_embeddings().num_embeddings):
            got = f"{len(tokenizer)} tokens, but embeddings of {rows}"
            raise CheckpointError(
                "the MLLM's tokenizer is not that of its weights", code="mismatched-tokenizer", got=got
            )
        encoder = MllmEncoder(model, tokenizer, image_processor, self.limits, read_template(folder))
        encoder.fingerprint = fingerprint(model.state_dict())
        return encoder.apply_tuning(self.tuning)


_VISION_FIELDS = ("num_heads", "window_size", "fullatt_block_indexes", "deepstack_visual_indexes", "hidden_act")
"""Fields of the vision tower's configuration that change its features but not the shapes of its weights."""


class MllmEncoder(nn.Module):
    """The MLLM with its preprocessing: maps prompts and queries to hidden states."""

    fingerprint = ""
    """Hash of the loaded weights; empty for randomly initialised ones."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        image_processor: Any,
        limits: VisionLimits,
        template: dict[str, str],
    ) -> None:
        super().__init__()
        self.model, self.config = model.requires_grad_(False), model.config
        self.hidden_size = int(model.config.text_config.hidden_size)
        sizes = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")
        # Frames already have their final size (VisionPreprocessor.resize_video), which transformers must not reduce.
        settings = {name: getattr(image_processor, name) for name in sizes}
        video_processor = transformers.Qwen2VLVideoProcessor(**settings, cap_pixels_per_frame=False)
        self.generation = GENERATIONS[model.config.model_type]
        self.settings = settings
        self.preprocessor = VisionPreprocessor(image_processor, video_processor, limits)
        self.prompter = Prompter(tokenizer, self.preprocessor, template, self.generation.spans)

    def apply_tuning(self, tuning: TuningSpec) -> MllmEncoder:
        """Freeze the language model, add adapters, or make it trainable, as the spec says, and return the encoder."""
        tuning.apply(self.model.language_model, LORA_TARGETS)
        return self

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raise a SpecError if the language model does not have these layers."""
        depth = int(self.config.text_config.num_hidden_layers)
        if unknown := [layer for layer in layers if not -depth - 1 <= layer <= depth]:
            expected = f"{-depth - 1} to {depth} (0: embeddings, -1: output of the final norm)"
            raise SpecError(f"the MLLM has no layers {unknown}", code="unknown-layer", expected=expected)

    def compute_position_ids(self, prompt: Prompt, seconds: int = 1) -> Tensor:
        """Compute Qwen's multimodal position ids (3, B, S), which are 0 at padding.

        `seconds` is the duration of a temporal patch (two frames); the published code uses 1, whatever the frame rate.
        """
        vision = self.config.vision_config
        images, videos = prompt.image_grid_thw, prompt.video_grid_thw
        grids: dict[int, Iterator[Tensor]] = {
            IMAGE: iter([] if images is None else images),
            VIDEO: iter([] if videos is None else self.generation.video_grids(videos)),
        }
        step = seconds * int(getattr(vision, "tokens_per_second", 1))
        positions = torch.zeros(3, *prompt.input_ids_BS.shape, dtype=torch.long, device=prompt.input_ids_BS.device)
        for row, length in enumerate(prompt.attention_mask_BS.sum(dim=1).tolist()):
            types_S = prompt.token_types_BS[row, :length]
            positions[:, row, :length] = compute_positions(types_S, grids, vision.spatial_merge_size, step)
        return positions

    @torch.no_grad()
    def encode_image(self, vision_input: VisionInput) -> VisionFeatures:
        """Compute the vision features of one image or video, so that they can be cached."""
        device = next(self.model.visual.parameters()).device
        patches = self.preprocessor.to_patches(vision_input).to(device)
        grid_13 = torch.tensor([self.preprocessor.patch_grid(vision_input.size)], device=device)
        (features,) = encode_vision(self.model.visual, patches, grid_13)
        return VisionFeatures(vision_input.kind, vision_input.size, features)

    @torch.no_grad()
    def vision_features(self, prompt: Prompt) -> PromptVisionFeatures:
        """Compute the features of all images and videos of a prompt without gradients, except for cached ones."""
        tower = self.model.visual
        return PromptVisionFeatures(
            encode_vision(tower, prompt.pixel_values, prompt.image_grid_thw, prompt.cached_image_features),
            encode_vision(tower, prompt.pixel_values_videos, prompt.video_grid_thw, prompt.cached_video_features),
        )

    def vision_fingerprint(self) -> str:
        """Hash everything that vision features depend on: the vision tower's weights and settings, and the limits."""
        tower, limits = self.model.visual, to_dict(self.preprocessor.limits)
        config = {name: getattr(self.config.vision_config, name, None) for name in _VISION_FIELDS}
        weights = fingerprint(tower.state_dict())
        inputs = (self.config.model_type, str(tower.dtype), weights, self.settings, config, limits)
        return hashlib.sha256(repr(inputs).encode()).hexdigest()

    def embed(self, prompt: Prompt, vision: PromptVisionFeatures, queries_QM: Tensor) -> LanguageModelInput:
        """Embed the prompt's tokens, replacing placeholders by vision features and queries."""
        # Not left to transformers, because only new versions accept precomputed features (`mm_encoder_outputs`), and
        # older ones ignore them silently.
        embeds_BSM = self.model.get_input_embeddings()(prompt.input_ids_BS)
        visual_LVM = vision.in_token_order(prompt.token_types_BS).to(embeds_BSM)
        queries = queries_QM.to(embeds_BSM).expand(len(embeds_BSM), *queries_QM.shape)
        embeds_BSM = embeds_BSM.masked_scatter((prompt.token_types_BS > 0)[..., None], visual_LVM[0])
        embeds_BSM = embeds_BSM.masked_scatter(prompt.queries_BS[..., None], queries)
        return LanguageModelInput(prompt, embeds_BSM, self.compute_position_ids(prompt), visual_LVM[1:])

    @property
    def language_model_forward(self) -> LanguageModelForward:
        """The forward pass to use: with a prefix cache if the language model is frozen."""
        # Chosen in every call, because adapters may be added and weights frozen after construction.
        is_trainable = any(parameter.requires_grad for parameter in self.model.language_model.parameters())
        return full_forward if is_trainable else prefix_cached_forward

    def forward(self, prompt: Prompt, queries_QM: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Compute hidden states (B, S, M) by layer: 0 the embeddings, 1 the first layer's output, -1 the final norm's.

        Attention is causal: the queries, which come last, attend to all other tokens, and no token attends to the
        padding on the right. If `layers` is empty, the model is not run.
        """
        if not layers:
            return {}
        embedded = self.embed(prompt, self.vision_features(prompt), queries_QM)
        return self.language_model_forward(self.model.language_model, embedded, layers)

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write base weights, tokenizer, preprocessor settings and prompt template, for `QwenVL(path=folder)`.

        Adapters are not written, because they belong to the editor's weights. `dtype` converts the written weights.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(folder)
        state = self.model.state_dict()
        base = {without_base_layer(name): state[name] for name in state if not is_adapter(name)}
        base = base if dtype is None else {name: tensor.to(dtype) for name, tensor in base.items()}
        write_weights(base, folder)
        self.save_processor(folder)

    def save_processor(self, folder: Path) -> None:
        """Write tokenizer, preprocessor settings and prompt template."""
        self.prompter.tokenizer.save_pretrained(folder)
        self.preprocessor.image_processor.save_pretrained(folder)
        write_json(folder / "prompt.json", self.prompter.template)


def _require_all_weights(model: nn.Module, info: dict[str, Any], path: str) -> None:
    """Raise an error for missing and unexpected weights, which transformers only logs; a language head is ignored."""
    mismatch = Mismatch(
        missing=sorted(info["missing_keys"]),
        unexpected=sorted(name for name in info["unexpected_keys"] if not name.startswith("lm_head.")),
        wrong_shapes=[str(item) for item in sorted(info["mismatched_keys"], key=str)],
    )
    mismatch.raise_if_any(f"the MLLM {path}")
