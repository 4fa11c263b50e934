"""Metrics of a run: the append-only file metrics.jsonl in the run folder."""

from pathlib import Path

from kiwi.media.journal import Journal

METRICS_FILE = "metrics.jsonl"
"""File in a run folder with one line of metrics per logged step."""


def read_log(run: Path | str) -> dict[int, dict[str, float]]:
    """Read the training and validation metrics of a run folder, by optimizer step.

    A resumed run may repeat steps: later values replace earlier ones. Lines without metrics are skipped.
    """
    log: dict[int, dict[str, float]] = {}
    for record in Journal(Path(run) / METRICS_FILE).read():
        step = record.pop("step", None)
        if type(step) is int and all(isinstance(value, (int, float)) for value in record.values()):
            log[step] = log.get(step, {}) | {name: float(value) for name, value in record.items()}
    return log
