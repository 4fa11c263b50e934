"""Model folders and published formats: saving, strict loading and conversion."""

from kiwi.checkpoints.options import ConvertOptions

__all__ = ["ConvertOptions", "convert"]


def convert(options: ConvertOptions) -> list[tuple[str, str]]:
    """Convert a model between a model folder and a published format.

    Returns:
        Pairs (part, what was done with it).

    Raises:
        CheckpointError: the weights do not match, or the published code does not support the model's options.
        InputError: an option would have no effect, or the target cannot be written.
    """
    from kiwi.checkpoints import conversion  # imports torch

    return conversion.convert(options)
