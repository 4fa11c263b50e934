"""The device that a model runs on."""

from __future__ import annotations

import torch

from kiwi.errors import InputError, first_line


def resolve_device(device: str | None) -> str:
    """The device of this name; without a name CUDA where there is any, else the CPU.

    Raises:
        InputError: torch does not know the device, or this machine does not have it.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as problem:
        raise InputError(
            f"the device {device!r} cannot be used",
            code="unusable-device",
            got=first_line(problem),
            fix="`python -m kiwi doctor` lists the devices of this machine",
        ) from None
    return device
