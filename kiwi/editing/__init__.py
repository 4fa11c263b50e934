"""Editing: a trained model folder applied to a video, from Python (`KiwiEditor`) or from file to file (`edit_file`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kiwi.editing.files import EditOptions, edit_file

if TYPE_CHECKING:
    from kiwi.editing.editor import KiwiEditor

__all__ = ["EditOptions", "KiwiEditor", "edit_file"]


def __getattr__(name: str) -> Any:
    # KiwiEditor needs torch and transformers, which take seconds to import.
    if name == "KiwiEditor":
        from kiwi.editing.editor import KiwiEditor

        return KiwiEditor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
