"""Attention on this machine: torch's fused kernel against plain products of matrices, forward and backward.

Ratios above 1: plain is the faster one. kiwi.models.dit.attention.attend takes the plain way for bf16 on a processor
that multiplies it and up to SHORT keys, and the fused kernel everywhere else.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kiwi import console
from kiwi.models.dit.attention import attend_unfused


def seconds(way: Callable[..., Tensor], qkv: list[Tensor], repeats: int) -> float:
    """Median time of one forward and backward pass, after one that does not count."""
    found = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        way(*qkv, None).sum().backward()
        if qkv[0].is_cuda:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cpu")
    options.add_argument("--threads", type=int, default=1, help="of the processor")
    options.add_argument("--repeats", type=int, default=7, help="passes; the median counts")
    options.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024], help="tokens")
    options.add_argument("--types", nargs="+", default=["float32", "bfloat16"], help="of queries, keys and values")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    for name in given.types:
        for length in given.lengths:
            shape = (max(1, 2048 // length), 4, length, 32)
            qkv = [torch.randn(shape, device=given.device).to(getattr(torch, name)).requires_grad_() for _ in range(3)]
            fused = seconds(F.scaled_dot_product_attention, qkv, given.repeats)
            ratio = fused / seconds(attend_unfused, qkv, given.repeats)
            rows.append((name, length, f"{1e3 * fused:.1f}", f"{ratio:.2f}"))
    console.table("Attention, forward and backward", ("type", "tokens", "fused, ms", "fused / plain"), rows)


if __name__ == "__main__":
    main()
