"""Time and memory of a training step as each optimisation is added, relative to the naive step.

    python benchmarks/speed/training_step.py

A step is the forward and backward pass of LitKiwi's loss on one batch of decoded frames; all variants have the same
weights. "query-only" backpropagates through the language model only for the query tokens; "cached" features are
computed beforehand. The ratios depend on the sizes, which are small by default.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from unittest import mock

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler; must be set before torch is imported

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from kiwi import console
from kiwi.data.sample import EditBatch, EditSample, collate
from kiwi.encoded import TaskKind
from kiwi.flow.schedule import add_noise, velocity_loss, velocity_target
from kiwi.models.config import KiwiConfig
from kiwi.models.connectors import QueryConnector
from kiwi.models.dit.transformer import DiTConfig
from kiwi.models.mllm import encoder as mllm_encoder
from kiwi.models.mllm.new_qwen import NewQwen
from kiwi.models.mllm.prefix_cache import full_forward
from kiwi.models.mllm.vision_input import VisionLimits
from kiwi.models.tuning import Frozen, Lora, TuningSpec
from kiwi.models.vae.wan import NewVae
from kiwi.tables import Table
from kiwi.training.modules.editor import LitKiwi

Step = Callable[[], None]
"""Function that runs one training step."""


def build_module(options: argparse.Namespace, tuning: TuningSpec) -> LitKiwi:
    """Build a randomly initialised editor of the given sizes in training mode."""
    area = options.height * options.width
    encoder = NewQwen(
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
        mllm=encoder,
        query=QueryConnector(reference=options.queries),
    )
    return LitKiwi(config).to(options.device).train()


def make_random_batch(options: argparse.Namespace, device: torch.device) -> EditBatch:
    """Make a batch of random pixels with a reference image per sample, without cached features."""
    rng = np.random.default_rng(0)
    size = (options.frames, options.height, options.width)

    def sample(index: int) -> EditSample:
        source, target = rng.integers(0, 256, (2, *size, 3), np.uint8)
        references = rng.integers(0, 256, (1, *size[1:], 3), np.uint8)
        instruction = "Put this on the table. " * (1 + index)
        return EditSample(
            str(index), TaskKind.reference, instruction, size, source, target, tuple(references), references
        )

    batch = collate([sample(index) for index in range(options.batch)])
    tensors = ("source_BCFHW", "target_BCFHW", "references_BRCHW")
    return replace(batch, **{name: getattr(batch, name).to(device) for name in tensors})


def make_variants(module: LitKiwi, batch: EditBatch) -> dict[str, Step]:
    """Make the naive step and its variants, each with one more optimisation than the one before."""
    encoder, vae = module.editor.mllm, module.editor.vae
    with torch.no_grad():
        preprocessor = encoder.preprocessor
        with_vision = replace(
            batch,
            source_frames=[encoder.encode_image(preprocessor.prepare_source(frames)) for frames in batch.source_frames],
            reference_images=[
                tuple(encoder.encode_image(preprocessor.prepare_reference(image)) for image in images)
                for images in batch.reference_images
            ],
        )
        source, target = (vae.posterior(clips) for clips in (batch.source_BCFHW, batch.target_BCFHW))
    with_latents = replace(with_vision, source_posterior=source, target_posterior=target)
    batches = {"cached vision": with_vision, "cached vision and latents": with_latents}
    cached: dict[str, Step] = {name: partial(run_step, module, inputs) for name, inputs in batches.items()}
    if encoder.language_model_forward is full_forward:  # a trainable language model needs the gradient of every token
        return {"naive": partial(run_step, module, batch), **cached}
    query_only = {f"query-only, {name}": step for name, step in cached.items()}
    return {
        "naive": partial(run_naive_step, module, batch),
        "query-only": partial(run_step, module, batch),
        **query_only,
    }


def run_step(module: LitKiwi, batch: EditBatch) -> None:
    """Run a training step without the optimizer."""
    x0 = module.draw_target_latents(batch)
    noise, sigma_B = module.draw_noise(batch.ids, x0.shape, 0)
    conditions = module.editor.encode(batch, module.get_source_latents(batch))
    predicted = module.editor(add_noise(x0, noise, sigma_B), sigma_B, conditions)
    velocity_loss(predicted, velocity_target(x0, noise)).mean().backward()
    module.zero_grad()


def run_naive_step(module: LitKiwi, batch: EditBatch) -> None:
    """Run a training step that backpropagates through the language model for every token."""
    with mock.patch.object(mllm_encoder, "prefix_cached_forward", full_forward):
        run_step(module, batch)


def measure_seconds(step: Step, device: torch.device) -> float:
    """Measure the wall time of one step."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    step()
    synchronize()
    return time.perf_counter() - start


def measure_peak_bytes(step: Step, device: torch.device) -> int:
    """Measure the peak of memory allocated during a step, beyond what was allocated before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    allocations = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return int(np.cumsum([size for _, size in allocations]).max())


def measure_variants(options: argparse.Namespace, name: str, tuning: TuningSpec) -> list[list[str]]:
    """Measure all variants for one tuning of the language model; returns rows of the table."""
    device = torch.device(options.device)
    module = build_module(options, tuning)
    steps = make_variants(module, make_random_batch(options, device))
    times: dict[str, list[float]] = {variant: [] for variant in steps}
    # Variants take turns so that load from other processes affects all of them; the first turn is a warm-up.
    for _ in console.progress(range(options.repeats + 1), name):
        for variant, step in steps.items():
            times[variant].append(measure_seconds(step, device))
    medians = {variant: statistics.median(values[1:]) for variant, values in times.items()}
    memory = {variant: measure_peak_bytes(step, device) for variant, step in steps.items()}
    naive = f"{1e3 * medians['naive']:.0f} ms and {memory['naive'] / 2**20:.1f} MiB on {options.device}"
    console.note(f"{name}: {format_parameter_counts(module)}; naive: {naive}, median of {options.repeats}")
    return [
        [name, variant, f"{medians[variant] / medians['naive']:.2f}", f"{memory[variant] / memory['naive']:.2f}"]
        for variant in steps
    ]


def format_parameter_counts(module: nn.Module) -> str:
    """Format the numbers of parameters of DiT, MLLM and VAE."""
    editor = module.editor
    counts = {part: sum(p.numel() for p in getattr(editor, part).parameters()) for part in ("dit", "mllm", "vae")}
    return ", ".join(f"{part} {count / 1e6:.2f}M" for part, count in counts.items())


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--generation", choices=["2.5", "3"], default="2.5", help="version of Qwen-VL")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    sizes = {
        "dit-width": (96, "width of the DiT"),
        "dit-layers": (3, "blocks of the DiT"),
        "mllm-width": (128, "width of the language model"),
        "mllm-layers": (8, "layers of the language model"),
        "vision-layers": (6, "layers of the vision tower"),
        "vae-width": (8, "base channels of the VAE"),
        "latent-channels": (16, "latent channels of the VAE"),
        "queries": (64, "number of learnable queries"),
        "rank": (8, "rank of the language model's LoRA"),
        "batch": (2, "samples in a batch"),
        "frames": (5, "frames of a clip"),
        "height": (96, "height of a frame"),
        "width": (128, "width of a frame"),
        "repeats": (7, "timed steps of each variant"),
        "threads": (1, "CPU threads"),
    }
    for option, (default, description) in sizes.items():
        parser.add_argument(f"--{option}", type=int, default=default, help=description)
    options = parser.parse_args()
    # One thread by default: with one per core, a single core that is busy otherwise delays all of them.
    torch.set_num_threads(options.threads)
    tunings = {"frozen": Frozen(), "LoRA": Lora(rank=options.rank)}
    rows = [row for name, tuning in tunings.items() for row in measure_variants(options, name, tuning)]
    console.table(Table("Ratios to the naive step", ["language model", "variant", "step time", "peak memory"], rows))


if __name__ == "__main__":
    main()
