"""Where bf16 is fast, and where autocast must be off because it would round a noise level or a timestep."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from kiwi.environment import hardware


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context that disables autocast on a device (the meta device does not support it)."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


@cache
def cpu_has_bf16_matmul() -> bool:
    """Whether the CPU has instructions for bf16, and torch the library that uses them.

    On an EPYC with avx512_bf16, matrix products are 4.4 times as fast in bf16 as in float32 (840 and 190 GFLOP/s, two
    threads); on one without, they have a hundredth of the speed (0.7 and 64).
    """
    return bool(hardware()["avx512_bf16"]) and torch.backends.mkldnn.is_available()
