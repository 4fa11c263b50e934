"""TextToVideo: a Wan text-to-video model with a small text encoder, whose DiT an editor can start from.

    caption --text encoder, text embedding--> context
    noisy latents --patch embedding--> tokens --DiT, context--> velocity

An editor loads the DiT with `WanBase`, which ignores the text embedding, as for the published Wan models.

B samples, N tokens of a caption, T the text encoder's width, D the DiT's width; latents (B, C, F, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from kiwi.errors import SpecError
from kiwi.flow.schedule import FlowSchedule
from kiwi.keyed import forked_rng
from kiwi.media.files import write_json
from kiwi.models.connectors import Context
from kiwi.models.dit.attention import KeysValues, Rope, compute_rope
from kiwi.models.dit.transformer import DiTConfig
from kiwi.models.mllm.prompting import require_distinct_tokens
from kiwi.models.vae.wan import VaeSpec
from kiwi.spec import Spec, require_positive, to_dict
from kiwi.weights.files import write_weights
from kiwi.weights.hub import locate
from kiwi.weights.names import TEXT_EMBEDDING

MODEL_KIND = "kiwi text-to-video"
"""The value of "kind" in a saved model's config.json."""


@dataclass(frozen=True, kw_only=True)
class TextEncoder(Spec):
    """A randomly initialised UMT5 encoder, the architecture of Wan's text encoder.

    Args:
        tokenizer: folder of a tokenizer, or name of a shipped model, such as "sandbox/mllm".
        dim: width T.
        layers, heads: number of layers and attention heads.
        max_tokens: largest number of tokens of a caption; longer captions are truncated.
    """

    tokenizer: str
    dim: int = 128
    layers: int = 2
    heads: int = 4
    max_tokens: int = 128

    def __post_init__(self) -> None:
        require_positive(self, "dim", "layers", "heads", "max_tokens")
        if self.dim % self.heads:
            message = f"text.dim {self.dim} is not a multiple of text.heads {self.heads}"
            raise SpecError(message, code="inconsistent-sizes")

    def build(self) -> CaptionEncoder:
        folder = locate(self.tokenizer, "tokenizer", "pass a folder with tokenizer.json")
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        require_distinct_tokens(tokenizer)
        config = UMT5Config(
            vocab_size=len(tokenizer), d_model=self.dim, d_kv=self.dim // self.heads, d_ff=2 * self.dim,
            num_layers=self.layers, num_heads=self.heads, dropout_rate=0.0, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        return CaptionEncoder(UMT5EncoderModel(config), tokenizer, self.max_tokens)


class CaptionEncoder(nn.Module):
    """The text encoder with its tokenizer."""

    def __init__(self, model: UMT5EncoderModel, tokenizer: Any, max_tokens: int) -> None:
        super().__init__()
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens

    def forward(self, captions: Sequence[str]) -> Context:
        """Encode captions as features (B, N, T), with a mask that is False at padding."""
        device = next(self.model.parameters()).device
        tokens = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(device)
        mask = tokens["attention_mask"]
        features = self.model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
        return Context(features, mask.bool())


@dataclass(frozen=True, kw_only=True)
class TextToVideoConfig(Spec):
    """Configuration of the text-to-video model: one spec per part.

    Args:
        dit: the diffusion transformer.
        vae: the video autoencoder, always frozen.
        text: the text encoder.
        schedule: the noise schedule.
    """

    dit: DiTConfig
    vae: VaeSpec
    text: TextEncoder
    schedule: FlowSchedule = field(default_factory=FlowSchedule)


class PreparedText(NamedTuple):
    """Inputs of the DiT that stay the same in all denoising steps of a video, as in `PreparedConditions`."""

    context: Sequence[KeysValues]
    rope: Rope
    grid: tuple[int, int, int]


class TextToVideo(nn.Module):
    """The network. `encode` computes the context, `prepare` the inputs shared by all steps, `velocity` one step.

    Args:
        config: the spec of every part.
        seed: seed for weight initialisation; each part uses an independent stream. The DiT gets the same initial
            weights as that of an editor with this seed.
    """

    def __init__(self, config: TextToVideoConfig, seed: int = 0) -> None:
        super().__init__()
        self.config, self.schedule = config, config.schedule
        self.vae = config.vae.build_frozen(config.dit.latent_channels, seed)
        self.size_multiple = config.dit.size_multiple(self.vae.spatial_factor)
        """Height and width of a video must be multiples of this many pixels."""
        with forked_rng(seed, "text"):
            self.text = config.text.build()
            width = config.dit.dim
            self.text_embedding = nn.Sequential(
                nn.Linear(config.text.dim, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
            )
        with forked_rng(seed, "dit"):
            self.dit = config.dit.build()
        self.train()

    def train(self, mode: bool = True) -> TextToVideo:
        """Set training mode, except that the VAE always stays in eval mode."""
        super().train(mode)
        self.vae.eval()
        return self

    def encode(self, captions: Sequence[str]) -> Context:
        """Encode captions as the DiT's context, (B, N, D)."""
        features, mask = self.text(captions)
        return Context(self.text_embedding(features), mask)

    def prepare(self, context: Context, latent_shape: Sequence[int]) -> PreparedText:
        """Compute once per video: every block's keys and values, and the rotary embedding for latents of this shape."""
        grid = self.dit.patch_embedding.compute_grid(latent_shape[2:])
        rope = compute_rope(*grid, self.config.dit.head_dim, device=context.tokens_BND.device).float()
        return PreparedText(self.dit.project_context(*context), rope, grid)

    def velocity(self, latents_BCFHW: Tensor, sigma_B: Tensor, prepared: PreparedText) -> Tensor:
        """Predict d x / d sigma for each sample at its own noise level: one denoising step."""
        tokens = self.dit.patch_embedding(latents_BCFHW)
        time = self.dit.embed_timestep(self.schedule.timestep(sigma_B))
        patches = self.dit(tokens, time, prepared.rope, prepared.context)
        return self.dit.unpatchify(patches, prepared.grid).float()

    def save(self, folder: Path) -> None:
        """Write the DiT under Wan's names, so that `WanBase(path=folder)` can read it, and the text encoder."""
        embedding = {f"{TEXT_EMBEDDING}{name}": tensor for name, tensor in self.text_embedding.state_dict().items()}
        write_weights({**self.dit.state_dict(), **embedding}, folder)
        write_json(folder / "config.json", {"kind": MODEL_KIND, "config": to_dict(self.config)})
        self.text.model.save_pretrained(folder / "text_encoder")
        self.text.tokenizer.save_pretrained(folder / "text_encoder")
