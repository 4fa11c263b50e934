"""Options of `kiwi convert`. Importing them does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kiwi.options import Options, option, parse_assignments, positional


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Options):
    """Convert a model between a model folder of this package and a published format.

    Formats:
      wan             the transformer of a Wan model, original or diffusers names (only into a model folder)
      kiwi-upstream   the published training checkpoint, one .safetensors file
      kiwi-diffusers  the published diffusers folder

    If SRC is a model folder, it is written as FORMAT to DST, provided that the published code supports its choices;
    otherwise SRC is read as FORMAT and DST becomes a model folder. Every tensor must be accounted for: missing,
    unexpected and mismatched tensors are listed and nothing is written. Parts that an earlier training stage did not
    have get initial values, which the report says.

    Args:
        format: the published format: wan, kiwi-upstream or kiwi-diffusers
        src: what to read: a model folder; for wan a file, a folder or a hub id, also as PATH:SUBFOLDER; for
            kiwi-upstream a file; for kiwi-diffusers a folder or a hub id
        dst: where to write; its parent folder must exist
        vae: for wan and kiwi-upstream: the VAE, as Wan's .pth file, a diffusers folder or a hub id; PATH:SUBFOLDER
            names a part of it
        mllm: for wan and kiwi-upstream: folder or hub id of the Qwen-VL without adapters
        base: for kiwi-upstream files without a DiT or with adapters only: the Wan base model (PATH or PATH:SUBFOLDER)
        adapters: whether LoRA adapters are merged into the weights or kept beside them
        by_name: refer to VAE and MLLM by path instead of copying them
        seed: seed for the initial values of absent parts
        set: a choice that the published format does not record, such as reference=PrependReference, dit.num_heads=24
            or mllm.limits.max_frames=10; may be repeated
        dtype: type of the weights in DST; VAE and MLLM keep theirs
        force: replace DST if it is of the kind that this command writes and holds nothing else
    """

    format: Literal["wan", "kiwi-upstream", "kiwi-diffusers"] = positional()
    src: str = positional()
    dst: Path = positional()
    vae: str | None = None
    mllm: str | None = None
    base: str | None = None
    adapters: Literal["merge", "keep"] = "merge"
    by_name: bool = False
    seed: int = 0
    set: tuple[str, ...] = option((), metavar="PATH=VALUE", repeat=True)
    dtype: Literal["keep", "float32", "bfloat16"] = "keep"
    force: bool = False

    def __post_init__(self) -> None:
        parse_assignments(self.set)
