"""A randomly initialised Qwen-VL of any size, with a byte-level tokenizer and an image processor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2VLImageProcessor, Qwen3VLConfig

from kiwi.errors import SpecError, first_line
from kiwi.models.mllm.encoder import GENERATIONS, MllmEncoder, MllmSpec
from kiwi.models.mllm.prompting import read_template
from kiwi.models.mllm.vision_input import VisionLimits
from kiwi.spec import require_positive

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>",
    "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NewQwen(MllmSpec):
    """A Qwen-VL with random weights, run by the same code as a pretrained one.

    Args:
        generation: generation of Qwen-VL.
        hidden_size: width M of the language model.
        layers: number of layers of the language model.
        heads: number of attention heads of the language model; by default M / 16.
        kv_heads: number of heads for keys and values; by default half of `heads`.
        intermediate_size: width of the language model's feed-forward layers; by default 2 M.
        vocab_size: number of rows of the embedding table; by default the size of the tokenizer's vocabulary.
        tokenizer: folder of a tokenizer with Qwen's special tokens, such as `kiwi sandbox vocabulary` writes; by
            default a byte-level one. A file prompt.json in the folder replaces the default prompt template.
        vision_hidden_size: width of the vision tower; by default M / 2, at least 32.
        vision_layers: number of blocks of the vision tower.
        vision_heads: number of attention heads of the vision tower; by default its width / 16.
        vision_intermediate_size: width of the vision tower's feed-forward layers; by default twice its width.
        vision_patch: side of a patch in pixels, half the side of a visual token; by default the published 14 for "2.5"
            and 16 for "3". With smaller patches, small images need not be enlarged.
        vision_window: side in pixels of the attention windows of the vision tower ("2.5" only).
        vision_full: indices of the vision tower's blocks with full attention instead of windows ("2.5" only).
        rope_theta: base of the language model's rotary embedding. Column positions use the lowest RoPE frequencies:
            with the published 1e6 and heads of 32 channels, they rotate by less than 2e-4 per visual token, so that
            the left and right of a frame of a few tokens cannot be distinguished. With a base below 10 they can.
        init_std: standard deviation of the initial weights. The published 0.02 is too small for narrow models, whose
            attention then learns slowly to distinguish tokens; M^-0.5 works better.
    """

    generation: Literal["2.5", "3"] = "2.5"
    hidden_size: int = 64
    layers: int = 2
    heads: int | None = None
    kv_heads: int | None = None
    intermediate_size: int | None = None
    vocab_size: int | None = None
    tokenizer: str | None = None
    vision_hidden_size: int | None = None
    vision_layers: int = 2
    vision_heads: int | None = None
    vision_intermediate_size: int | None = None
    vision_patch: int | None = None
    vision_window: int = 56
    vision_full: tuple[int, ...] = (-1,)
    rope_theta: float = 1e6
    init_std: float = 0.02
    limits: VisionLimits = field(
        default_factory=lambda: VisionLimits(
            max_frames=4, max_pixels_per_frame=84 * 84, min_pixels_per_frame=28 * 28, max_reference_tokens=16
        )
    )

    def __post_init__(self) -> None:
        require_positive(
            self, "hidden_size", "layers", "heads", "kv_heads", "intermediate_size", "vocab_size", "vision_layers",
            "vision_hidden_size", "vision_heads", "vision_intermediate_size", "vision_patch",
        )  # fmt: skip
        (heads, kv_heads), (width, vision_heads) = _head_counts(self), _vision_width_and_heads(self)
        if self.hidden_size % (2 * heads) or heads % kv_heads:
            message = "hidden_size must be divisible by 2 * heads, and heads by kv_heads"
            got = f"hidden_size {self.hidden_size}, heads {heads}, kv_heads {kv_heads}"
            raise SpecError(message, code="inconsistent-sizes", got=got)
        if width % (4 * vision_heads):
            message = "vision_hidden_size must be divisible by 4 * vision_heads"
            got = f"vision_hidden_size {width}, vision_heads {vision_heads}"
            raise SpecError(message, code="inconsistent-sizes", got=got)
        if self.rope_theta <= 1:
            raise SpecError("rope_theta must be above 1", code="out-of-range", got=self.rope_theta)
        if not 0 < self.init_std < 1:
            raise SpecError("init_std must be between 0 and 1", code="out-of-range", got=self.init_std)
        if self.vision_window < (token := 2 * _vision_patch_size(self)):
            message = f"vision_window is smaller than a visual token ({token} pixels)"
            raise SpecError(message, code="out-of-range", got=self.vision_window)

    @classmethod
    def qwen25_3b(cls) -> NewQwen:
        """Sizes of Qwen2.5-VL-3B."""
        return cls(
            hidden_size=2048, layers=36, heads=16, kv_heads=2, intermediate_size=11008, vocab_size=151936,
            vision_hidden_size=1280, vision_layers=32, vision_heads=16, vision_intermediate_size=3420,
            vision_window=112, vision_full=(7, 15, 23, 31), limits=VisionLimits(),
        )  # fmt: skip

    @classmethod
    def qwen25_7b(cls) -> NewQwen:
        """Sizes of Qwen2.5-VL-7B, which has the vision tower of Qwen2.5-VL-3B."""
        return cls.qwen25_3b().replace(
            hidden_size=3584, layers=28, heads=28, kv_heads=4, intermediate_size=18944, vocab_size=152064
        )

    @classmethod
    def sandbox(cls) -> NewQwen:
        """Sizes of the shipped MLLM (1.2 M parameters), trained on the sandbox."""
        return cls(
            hidden_size=128, layers=3, heads=4, kv_heads=2, vocab_size=648, vision_hidden_size=128, vision_heads=4,
            vision_patch=4, vision_window=64, vision_full=(0, 1), rope_theta=3,
        )  # fmt: skip

    def build(self) -> MllmEncoder:
        tokenizer = make_byte_tokenizer() if self.tokenizer is None else _load_tokenizer(self.tokenizer)
        if self.vocab_size is not None and self.vocab_size < len(tokenizer):
            message, minimum = "vocab_size is smaller than the tokenizer's vocabulary", f"{len(tokenizer)} or more"
            raise SpecError(message, code="out-of-range", got=self.vocab_size, expected=minimum)
        config = _make_config(self, tokenizer)
        normalisation = {} if self.generation == "2.5" else {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        processor = Qwen2VLImageProcessor(patch_size=_vision_patch_size(self), **normalisation)
        model = GENERATIONS[config.model_type].model(config)
        template = read_template(None if self.tokenizer is None else Path(self.tokenizer))
        encoder = MllmEncoder(model, tokenizer, processor, self.limits, template)
        return encoder.apply_tuning(self.tuning)


def make_byte_tokenizer() -> Any:
    """Make a byte-level tokenizer with Qwen's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    return _add_special_tokens(raw)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Train a byte-pair tokenizer with Qwen's special tokens; the same texts give the same tokenizer.

    It splits unknown words into bytes, which are 256 of the `vocab_size` tokens; special tokens come in addition.
    """
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(texts, trainer)
    return _add_special_tokens(raw)


def _add_special_tokens(raw: Tokenizer) -> Any:
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<|endoftext|>", eos_token="<|im_end|>")


def _load_tokenizer(folder: str) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(Path(folder).resolve(strict=True), trust_remote_code=False)
    except (OSError, ValueError) as error:
        message = f"the tokenizer {folder} cannot be loaded"
        raise SpecError(message, code="unreadable-model", got=first_line(error)) from error
    if missing := [token for token in SPECIAL_TOKENS if token not in tokenizer.get_vocab()]:
        message = f"the tokenizer {folder} lacks the special tokens {', '.join(missing)}"
        raise SpecError(message, code="missing-tokens")
    return tokenizer


def _make_config(spec: NewQwen, tokenizer: Any) -> Qwen2_5_VLConfig | Qwen3VLConfig:
    text, vision = _text_config(spec, tokenizer), _vision_config(spec)
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    shared: dict[str, Any] = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    shared["tie_word_embeddings"] = True  # the language head, which LitMllm trains, has the weights of the embeddings
    if spec.generation == "2.5":
        vision["window_size"] = spec.vision_window
        vision["fullatt_block_indexes"] = [index % spec.vision_layers for index in spec.vision_full]
        vision["tokens_per_second"] = 2
        return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **shared)
    # Qwen3-VL sets the width of a head explicitly. Its DeepStack adds features of vision block 0 to the first layer.
    text["head_dim"] = spec.hidden_size // text["num_attention_heads"]
    vision |= {"num_position_embeddings": 2304, "deepstack_visual_indexes": [0]}
    return Qwen3VLConfig(text_config=text, vision_config=vision, **shared)


def _head_counts(spec: NewQwen) -> tuple[int, int]:
    """Number of attention heads of the language model, and of its heads for keys and values."""
    heads = spec.heads or max(1, spec.hidden_size // 16)
    return heads, spec.kv_heads or max(1, heads // 2)


def _vision_width_and_heads(spec: NewQwen) -> tuple[int, int]:
    """Width and number of heads of the vision tower."""
    width = spec.vision_hidden_size or max(32, spec.hidden_size // 2)
    return width, spec.vision_heads or max(1, width // 16)


def _vision_patch_size(spec: NewQwen) -> int:
    """Side of a vision patch in pixels."""
    return spec.vision_patch or {"2.5": 14, "3": 16}[spec.generation]


def _text_config(spec: NewQwen, tokenizer: Any) -> dict[str, Any]:
    heads, kv_heads = _head_counts(spec)
    half = spec.hidden_size // heads // 2
    # Rotary channel pairs of frame, row and column, in the published proportion 16 : 24 : 24.
    sections = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    return {
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size or 2 * spec.hidden_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": spec.vocab_size or len(tokenizer),
        "initializer_range": spec.init_std,
        "max_position_embeddings": 4096 if spec.vocab_size is None else 128000,
        "rope_parameters": {"rope_type": "default", "mrope_section": sections, "rope_theta": spec.rope_theta},
        "bos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
    }


def _vision_config(spec: NewQwen) -> dict[str, Any]:
    width, heads = _vision_width_and_heads(spec)
    return {
        "initializer_range": spec.init_std,
        "depth": spec.vision_layers,
        "hidden_size": width,
        "intermediate_size": spec.vision_intermediate_size or 2 * width,
        "num_heads": heads,
        "out_hidden_size": spec.hidden_size,
        "patch_size": _vision_patch_size(spec),
    }
