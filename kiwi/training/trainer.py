"""Lightning's Trainer, with one precision more: `auto`, the fastest that this machine trains well in."""

from __future__ import annotations

import logging
from typing import Any, Literal

import lightning.pytorch as lightning
from lightning.pytorch.accelerators import Accelerator

from kiwi.environment import devices
from kiwi.models.precision import processor_multiplies_bf16

log = logging.getLogger(__name__)

Precision = Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true", "32", "bf16", "16"]


class Trainer(lightning.Trainer):
    """Trains a module; every option is Lightning's.

    Args:
        precision: as Lightning's; `auto` is bf16-mixed on an accelerator or a processor that multiplies bf16, and
            32-true everywhere else.
    """

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        precision: Precision | None = None,
        **kwargs: Any,
    ) -> None:
        on_cpu = accelerator == "cpu"
        if precision == "auto":
            precision = "bf16-mixed" if multiplies_bf16(on_cpu=on_cpu) else "32-true"
            log.info("precision: %s", precision)
        elif "bf16" in str(precision) and not multiplies_bf16(on_cpu=on_cpu):
            log.warning(
                "precision %s: nothing here multiplies bf16, which can be fifty times slower than float32; "
                "--trainer.precision auto takes what is fast",
                precision,
            )
        super().__init__(accelerator=accelerator, precision=precision, **kwargs)  # type: ignore[arg-type]


def multiplies_bf16(*, on_cpu: bool = False) -> bool:
    """Whether what a run would use has instructions for bf16: the accelerators, or without any the processor.

    Args:
        on_cpu: leave accelerators out.
    """
    found = [] if on_cpu else devices()
    if found:
        return all(device["bf16"] for device in found)
    return processor_multiplies_bf16()
