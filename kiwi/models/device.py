"""The PyTorch device that a model runs on, and whether it computes in bf16 or must not."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from kiwi.environment import hardware
from kiwi.errors import InputError, first_line


def resolve_device(device: str | None) -> str:
    """Check that a device can be used and return its name; None stands for CUDA if available, else for the CPU.

    Raises:
        InputError: if PyTorch does not know the device, or this machine does not have it.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        fix = "`python -m kiwi doctor` lists the devices of this machine"
        message = f"the device {device!r} cannot be used"
        raise InputError(message, code="unusable-device", got=first_line(error), fix=fix) from None
    return device


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Disable autocast, which would round noise levels and timesteps; the meta device does not support autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


@cache
def cpu_has_bf16_matmul() -> bool:
    """Whether the CPU has bf16 instructions and this build of PyTorch has oneDNN, which uses them.

    On an EPYC with avx512_bf16, matrix products are 4.4 times as fast in bf16 as in float32 (840 and 190 GFLOP/s, two
    threads); on a CPU without it, they are about 90 times slower (0.7 and 64).
    """
    return bool(hardware()["avx512_bf16"]) and torch.backends.mkldnn.is_available()
