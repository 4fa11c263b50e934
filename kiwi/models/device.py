"""The PyTorch device that a model runs on."""

import torch

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
        raise InputError(
            f"the device {device!r} cannot be used",
            code="unusable-device",
            got=first_line(error),
            fix="`python -m kiwi doctor` lists the devices of this machine",
        ) from None
    return device
