"""Attention on this machine, forward and backward: PyTorch's fused kernel against separate matrix products.

    python benchmarks/speed/attention.py

A ratio above 1 means that separate products are faster. kiwi.models.dit.attention.attend uses them for up to
MAX_UNFUSED_KEYS keys in bf16 on CPUs with native bf16 products, and the fused kernel everywhere else.
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
from kiwi.tables import Table


def measure_seconds(attend: Callable[..., Tensor], qkv: list[Tensor], repeats: int) -> float:
    """Measure the median time of a forward and backward pass after one warm-up pass."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        attend(*qkv, None).sum().backward()
        if qkv[0].is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--repeats", type=int, default=7, help="timed passes; the result is their median (default: 7)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024], help="numbers of tokens")
    parser.add_argument("--types", nargs="+", default=["float32", "bfloat16"], help="dtypes to measure")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.types:
        for length in options.lengths:
            shape, dtype = (max(1, 2048 // length), 4, length, 32), getattr(torch, name)
            qkv = [torch.randn(shape, device=options.device).to(dtype).requires_grad_() for _ in range(3)]
            fused = measure_seconds(F.scaled_dot_product_attention, qkv, options.repeats)
            ratio = fused / measure_seconds(attend_unfused, qkv, options.repeats)
            rows.append((name, length, f"{1e3 * fused:.1f}", f"{ratio:.2f}"))
    console.table(Table("Attention, forward and backward", ("dtype", "tokens", "fused (ms)", "fused / unfused"), rows))


if __name__ == "__main__":
    main()
