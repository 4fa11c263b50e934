"""Model folders and published formats: saving, strict loading and conversion; importing this does not import torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kiwi.options import Options, option, parse_assignments, positional


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Options):
    """Convert a model between kiwi's model folder and a published format.

    Formats:
      wan             the transformer of a Wan model with original or diffusers names (can be read, not written)
      kiwi-upstream   the published training checkpoint, one .safetensors file
      kiwi-diffusers  the published diffusers folder
      lora-comfyui, lora-diffusers  the DiT's LoRA adapters alone, one .safetensors file

    If SRC is a model folder, it is written as FORMAT to DST, provided that the published code supports its options;
    otherwise SRC is read as FORMAT and DST becomes a model folder. Tensor names and shapes must match exactly: if any
    is missing, unexpected or of the wrong shape, these are listed and nothing is written. Parts that an earlier
    training stage did not have are initialised and reported. LoRA files with the names of ComfyUI, musubi,
    kohya, diffusers, peft or DiffSynth can be read as kiwi-upstream or lora-... (the names are recognised) and need
    --base. FILE:NAME chooses one of several sets of weights in a file, such as a moving average.

    Args:
        format: the published format
        src: input: a model folder; for wan a file, a folder or a hub id, also as PATH:SUBFOLDER; for kiwi-upstream and
            lora-... a file, also as FILE:NAME; for kiwi-diffusers a folder or a hub id
        dst: output path; its parent folder must exist
        vae: the VAE, if FORMAT does not contain it: Wan's .pth file, a diffusers folder or a hub id; with a subfolder,
            PATH:SUBFOLDER
        mllm: the Qwen-VL without adapters, if FORMAT does not contain it: a folder or a hub id
        base: the Wan base model (PATH or PATH:SUBFOLDER), for files that contain no DiT or only its adapters
        adapters: whether LoRA adapters are merged into the weights or kept separate
        by_name: refer to VAE and MLLM by their path or hub id instead of copying them
        seed: seed for initialising missing parts
        set: model option that the published format does not record, such as reference=PrependReference,
            dit.num_heads=24 or mllm.limits.max_frames=10; may be repeated
        dtype: dtype of the weights in DST; VAE and MLLM keep theirs
        force: replace DST if it is an output of this command and contains no other files
    """

    format: Literal["wan", "kiwi-upstream", "kiwi-diffusers", "lora-comfyui", "lora-diffusers"] = positional()
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
        super().__post_init__()
        parse_assignments(self.set)


def convert(options: ConvertOptions) -> list[tuple[str, str]]:
    """Convert a model between a model folder and a published format.

    Returns:
        Pairs (part, what was done with it).

    Raises:
        CheckpointError: the weights do not match, or the published code does not support the model's options.
        InputError: an option would have no effect, or the target cannot be written.
    """
    from kiwi.checkpoints import conversion  # imports torch

    return conversion.convert(options)
