"""The metrics of a run: metrics.jsonl in its folder."""

from __future__ import annotations

import json
from pathlib import Path

FILE = "metrics.jsonl"


def read_log(run: Path | str) -> dict[int, dict[str, float]]:
    """Numbers by step of a run's folder, training's and validation's together; of a step done twice the later ones.

    Lines that are none, such as one that a kill cut short, are passed over.
    """
    found: dict[int, dict[str, float]] = {}
    for line in (Path(run) / FILE).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            numbers = json.loads(line)
            step = numbers.pop("step")
            numbers = {name: float(value) for name, value in numbers.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if type(step) is int:
            found[step] = found.get(step, {}) | numbers
    return found
