"""`kiwi fit` and `kiwi validate`: LightningCLI, with every field of the model, data and trainer as an option."""

from __future__ import annotations

from kiwi.training.fit import run


def main(argv: list[str]) -> int:
    """Run `fit` or `validate`."""
    run(argv)
    return 0
