"""The metrics of a run: metrics.jsonl in its folder, which a kill does not cut short."""

from __future__ import annotations

from pathlib import Path

from kiwi.media.journal import Journal

METRICS_FILE = "metrics.jsonl"


def read_log(run: Path | str) -> dict[int, dict[str, float]]:
    """The metrics of a run's folder by step, those of training and validation together.

    A resumed run may repeat steps: later values replace those before. Lines that are not metrics are skipped.
    """
    log: dict[int, dict[str, float]] = {}
    for record in Journal(Path(run) / METRICS_FILE).read():
        step = record.pop("step", None)
        if type(step) is int and all(isinstance(value, (int, float)) for value in record.values()):
            log[step] = log.get(step, {}) | {name: float(value) for name, value in record.items()}
    return log
