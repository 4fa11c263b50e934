"""Model folders and the published formats: saving, strict loading, conversion."""

from kiwi.checkpoints.options import ConvertOptions

__all__ = ["ConvertOptions", "convert"]


def convert(options: ConvertOptions) -> list[tuple[str, str]]:
    """Convert a model between a model folder and a published format.

    Returns:
        Pairs of a part and what was done with it.

    Raises:
        CheckpointError: weights that do not match, or choices that the published code does not have.
        InputError: options that would have no effect, or a target that cannot be written.
    """
    from kiwi.checkpoints import conversion  # imports torch

    return conversion.convert(options)
