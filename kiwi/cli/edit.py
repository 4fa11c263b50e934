"""`kiwi edit VIDEO --instruction TEXT --out FILE`: edit one video with a trained model."""

from kiwi import console
from kiwi.cli import parse
from kiwi.editing import EditOptions, edit_file


def main(argv: list[str]) -> int:
    """Edit the video, and print path and size of the result."""
    options = parse(EditOptions, argv[0], argv[1:])
    edited = edit_file(options)
    size = f"{edited.height}x{edited.width}, {edited.frame_count} frames at {float(edited.fps):g} fps"
    console.print(f"{options.out} ({size})")
    return 0
