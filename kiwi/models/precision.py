"""Where autocast must not reach: what would round a noise level or a timestep."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off on a device (the meta device knows none)."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
