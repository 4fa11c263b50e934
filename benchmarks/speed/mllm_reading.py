"""What a training step through the MLLM costs: all tokens differentiated, only the queries, vision features reused.

Each way is told as a ratio to the naive one of the same run and the same weights. Prompts are prepared beforehand.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kiwi import console
from kiwi.models.mllm import MllmEncoder
from kiwi.models.new_qwen import NewQwen
from kiwi.models.prompting import Prompt, VisionLimits
from kiwi.models.reading import read_whole
from kiwi.models.tuning import Frozen, Lora, TuningSpec

Forward = Callable[[], Tensor]
"""Last hidden states (B, S, M) of a batch, with the graph behind them."""


def ways(encoder: MllmEncoder, prompt: Prompt, queries_QM: Tensor) -> dict[str, Forward]:
    """The naive way first; then the encoder's own where that is another, and that with vision features from before."""
    vision = encoder.see(prompt)

    def naive() -> Tensor:
        given = encoder.embed(prompt, encoder.see(prompt), queries_QM)
        return read_whole(encoder.model.language_model, given, (-1,))[-1]

    def own() -> Tensor:
        return encoder(prompt, queries_QM, (-1,))[-1]

    def cached() -> Tensor:
        return encoder(prompt, queries_QM, (-1,), vision)[-1]

    if encoder.reading is read_whole:
        return {"naive": naive, "cached vision": cached}
    return {"naive": naive, "query-only": own, "query-only, cached vision": cached}


def backward(forward: Forward, where_BS: Tensor) -> None:
    """Forward and backward of a loss on the queries' states."""
    forward()[where_BS].float().pow(3).mean().backward()


def seconds(step: Callable[[], None], device: torch.device) -> float:
    """Wall time of one step."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    step()
    synchronize()
    return time.perf_counter() - start


def saved_bytes(forward: Forward, encoder: MllmEncoder) -> int:
    """Bytes that the graph keeps for the backward pass, each storage once, the weights left out."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in encoder.state_dict().values()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = forward()
    assert graph.requires_grad
    return sum(size for place, size in kept.items() if place not in weights)


def peak_bytes(step: Callable[[], None]) -> int:
    """The most CUDA memory in use during a step, above what was in use before it."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def measure(options: argparse.Namespace, name: str, tuning: TuningSpec) -> list[list[str]]:
    """Rows of the table for one way of learning."""
    device = torch.device(options.device)
    area = options.height * options.width
    limits = VisionLimits(
        max_frames=options.frames, max_pixels_per_frame=2 * area, min_pixels_per_frame=min(area, 28 * 28)
    )
    spec = NewQwen(
        generation=options.generation,
        hidden_size=options.hidden_size,
        layers=options.layers,
        vision_layers=options.vision_layers,
        limits=limits,
        tuning=tuning,
    )
    torch.manual_seed(0)
    encoder = spec.build().to(device).eval()
    shape = (options.batch, options.frames, options.height, options.width, 3)
    clips = list(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    words = ["Make it snow. " * (1 + row) for row in range(options.batch)]
    prompt = encoder.prompter(clips, words, [()] * options.batch, "video", options.queries).to(device)
    queries_QM = torch.randn(options.queries, encoder.hidden_size, device=device, requires_grad=True)
    forwards = ways(encoder, prompt, queries_QM)
    steps = {way: partial(backward, forward, prompt.queries_BS) for way, forward in forwards.items()}
    times: dict[str, list[float]] = {way: [] for way in steps}
    # Ways take turns, so that a change of the machine's load falls on all; the first turn only warms up.
    for _ in console.progress(range(options.repeats + 1), name):
        for way, step in steps.items():
            times[way].append(seconds(step, device))
    time_of = {way: statistics.median(found[1:]) for way, found in times.items()}
    on_cuda = device.type == "cuda"
    memory = {way: peak_bytes(steps[way]) if on_cuda else saved_bytes(forwards[way], encoder) for way in steps}
    naive = next(iter(steps))
    tokens = prompt.input_ids_BS.shape[1]
    cost = f"{1e3 * time_of[naive]:.0f} ms and {memory[naive] / 2**20:.1f} MiB on {options.device}"
    console.note(f"{name}: {options.batch} x {tokens} tokens, {options.queries} queries; naive: {cost}")
    return [[name, way, f"{time_of[way] / time_of[naive]:.2f}", f"{memory[way] / memory[naive]:.2f}"] for way in steps]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--generation", choices=["2.5", "3"], default="2.5", help="of Qwen-VL")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    sizes = {"hidden-size": (128, "width of the language model"), "layers": (4, "of the language model")}
    sizes |= {
        "vision-layers": (4, "of the vision tower"),
        "batch": (2, "samples"),
        "queries": (64, "learnable queries"),
    }
    sizes |= {"frames": (4, "of each clip"), "height": (168, "of a frame"), "width": (168, "of a frame")}
    sizes |= {"rank": (8, "of the adapters"), "repeats": (9, "timed steps of each way"), "threads": (1, "of the CPU")}
    for option, (default, told) in sizes.items():
        parser.add_argument(f"--{option}", type=int, default=default, help=told)
    options = parser.parse_args()
    # One thread by default: with as many as cores, whatever else runs on the machine makes all of them wait.
    torch.set_num_threads(options.threads)
    rows = [
        row
        for name, tuning in {"frozen": Frozen(), "LoRA": Lora(rank=options.rank)}.items()
        for row in measure(options, name, tuning)
    ]
    memory = "peak memory" if options.device.startswith("cuda") else "memory saved for backward"
    console.table("ratios to the naive step", ["language model", "way", "step time", memory], rows)


if __name__ == "__main__":
    main()
