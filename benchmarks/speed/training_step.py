"""What a training step costs, way by way: the naive one, then each thing done once instead of at every step.

Forward and backward of LitKiwi's loss on one batch, from decoded pixels on; the ways add up. Each is told as a ratio to
the naive one of the same run and the same weights. Sizes are small by default; the ratios depend on them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages; read when torch is imported

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from kiwi import console
from kiwi.data.sample import EditBatch, EditSample, collate
from kiwi.encoded import TaskKind
from kiwi.flow.objective import add_noise, velocity_loss, velocity_target
from kiwi.models import mllm
from kiwi.models.config import KiwiConfig
from kiwi.models.connectors import QueryConnector
from kiwi.models.dit.transformer import DiTConfig
from kiwi.models.mllm.new_qwen import NewQwen
from kiwi.models.mllm.prefix_cache import full_forward
from kiwi.models.mllm.vision_input import VisionLimits
from kiwi.models.tuning import Frozen, Lora, TuningSpec
from kiwi.models.vae.wan import NewVae
from kiwi.training.modules.editor import LitKiwi

Step = Callable[[], None]


def build(options: argparse.Namespace, tuning: TuningSpec) -> LitKiwi:
    """A new editor of the asked sizes, ready to be trained."""
    area = options.height * options.width
    reader = NewQwen(
        generation=options.generation,
        hidden_size=options.mllm_width,
        layers=options.mllm_layers,
        vision_layers=options.vision_layers,
        limits=VisionLimits(max_frames=16, max_pixels_per_frame=2 * area, min_pixels_per_frame=min(area, 28 * 28)),
        tuning=tuning,
    )
    dit = DiTConfig(
        dim=options.dit_width,
        ffn_dim=4 * options.dit_width,
        num_heads=options.dit_width // 32,
        num_layers=options.dit_layers,
        freq_dim=64,
        latent_channels=options.latent_channels,
    )
    config = KiwiConfig(
        dit=dit,
        vae=NewVae(z_dim=options.latent_channels, base_dim=options.vae_width),
        mllm=reader,
        query=QueryConnector(reference=options.queries),
    )
    return LitKiwi(config).to(options.device).train()


def pixels(options: argparse.Namespace, device: torch.device) -> EditBatch:
    """A batch of noise with a reference each, as training gets it without a cache."""
    rng = np.random.default_rng(0)
    size = (options.frames, options.height, options.width)

    def sample(index: int) -> EditSample:
        source, target = rng.integers(0, 256, (2, *size, 3), np.uint8)
        picture = rng.integers(0, 256, (1, *size[1:], 3), np.uint8)
        words = "Put this on the table. " * (1 + index)
        return EditSample(str(index), TaskKind.reference, words, size, source, target, tuple(picture), picture)

    batch = collate([sample(index) for index in range(options.batch)])
    tensors = ("source_BCFHW", "target_BCFHW", "references_BRCHW")
    return replace(batch, **{name: getattr(batch, name).to(device) for name in tensors})


def ways(module: LitKiwi, batch: EditBatch) -> dict[str, Step]:
    """From the naive step on, each with one more thing done before."""
    encoder, vae = module.editor.mllm, module.editor.vae
    with torch.no_grad():
        prepare = encoder.preprocessor
        seen = replace(
            batch,
            source_frames=[encoder.encode_image(prepare.prepare_source(frames)) for frames in batch.source_frames],
            reference_images=[
                tuple(encoder.encode_image(prepare.prepare_reference(image)) for image in images)
                for images in batch.reference_images
            ],
        )
        source, target = (vae.posterior(clips) for clips in (batch.source_BCFHW, batch.target_BCFHW))
    cached = replace(seen, source_latents=source, target_latents=target)
    given = {"cached vision": seen, "cached vision and latents": cached}
    own: dict[str, Step] = {name: partial(step, module, one) for name, one in given.items()}
    if encoder.language_model_forward is full_forward:
        return {"naive": partial(step, module, batch), **own}
    query_only = {f"query-only, {name}": way for name, way in own.items()}
    return {"naive": partial(naive, module, batch), "query-only": partial(step, module, batch), **query_only}


def step(module: LitKiwi, batch: EditBatch) -> None:
    """What one training step computes before the optimizer."""
    x0 = module.target_latents(batch)
    noise, sigma_B = module.draw(batch.ids, x0.shape, 0)
    conditions = module.editor.encode(batch, module.source_latents(batch))
    predicted = module.editor(add_noise(x0, noise, sigma_B), sigma_B, conditions)
    velocity_loss(predicted, velocity_target(x0, noise)).mean().backward()
    module.zero_grad()


def naive(module: LitKiwi, batch: EditBatch) -> None:
    """The same, every token of the frozen language model differentiated."""
    own, mllm.prefix_cached_forward = mllm.prefix_cached_forward, full_forward
    try:
        step(module, batch)
    finally:
        mllm.prefix_cached_forward = own


def seconds(way: Step, device: torch.device) -> float:
    """Wall time of one step."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    way()
    synchronize()
    return time.perf_counter() - start


def peak_bytes(way: Step, device: torch.device) -> int:
    """The most memory that the allocator gave out during a step, above what was in use before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        way()
    events = found.profiler.kineto_results.events()  # type: ignore[union-attr]
    given = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return int(np.cumsum([size for _, size in given]).max())


def measure(options: argparse.Namespace, name: str, tuning: TuningSpec) -> list[list[str]]:
    """Rows of the table for one way in which the language model learns."""
    device = torch.device(options.device)
    module = build(options, tuning)
    found = ways(module, pixels(options, device))
    times: dict[str, list[float]] = {way: [] for way in found}
    # Ways take turns, so that a change of the machine's load falls on all; the first turn only warms up.
    for _ in console.progress(range(options.repeats + 1), name):
        for way, one in found.items():
            times[way].append(seconds(one, device))
    time_of = {way: statistics.median(some[1:]) for way, some in times.items()}
    memory = {way: peak_bytes(one, device) for way, one in found.items()}
    cost = f"{1e3 * time_of['naive']:.0f} ms and {memory['naive'] / 2**20:.1f} MiB on {options.device}"
    console.note(f"{name}: {told(module)}; naive: {cost}, median of {options.repeats}")
    return [
        [name, way, f"{time_of[way] / time_of['naive']:.2f}", f"{memory[way] / memory['naive']:.2f}"] for way in found
    ]


def told(module: nn.Module) -> str:
    """Sizes of the parts."""
    editor = module.editor
    sizes = {part: sum(p.numel() for p in getattr(editor, part).parameters()) for part in ("dit", "mllm", "vae")}
    return ", ".join(f"{part} {size / 1e6:.2f}M" for part, size in sizes.items())


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--generation", choices=["2.5", "3"], default="2.5", help="of Qwen-VL")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    sizes = {
        "dit-width": (96, "of the DiT"),
        "dit-layers": (3, "of the DiT"),
        "mllm-width": (128, "of the language model"),
        "mllm-layers": (8, "of the language model"),
        "vision-layers": (6, "of the vision tower"),
        "vae-width": (8, "base channels of the VAE"),
        "latent-channels": (16, "of the VAE"),
        "queries": (64, "learnable queries"),
        "rank": (8, "of the language model's adapters"),
        "batch": (2, "samples"),
        "frames": (5, "of each clip"),
        "height": (96, "of a frame"),
        "width": (128, "of a frame"),
        "repeats": (7, "timed steps of each way"),
        "threads": (1, "of the CPU"),
    }
    for option, (default, what) in sizes.items():
        parser.add_argument(f"--{option}", type=int, default=default, help=what)
    options = parser.parse_args()
    # One thread by default: with as many as cores, whatever else runs on the machine makes all of them wait.
    torch.set_num_threads(options.threads)
    tunings = {"frozen": Frozen(), "LoRA": Lora(rank=options.rank)}
    rows = [row for name, tuning in tunings.items() for row in measure(options, name, tuning)]
    console.table(
        "ratios to the naive step",
        ["language model", "way", "step time", "peak memory"],
        rows,
    )


if __name__ == "__main__":
    main()
