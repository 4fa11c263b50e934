"""`kiwi fit` and `kiwi validate`: LightningCLI with every field of model, data and trainer as an option."""

from kiwi.training.fit import run_command_line


def main(argv: list[str]) -> int:
    """Run `fit` or `validate`."""
    run_command_line(argv)
    return 0
