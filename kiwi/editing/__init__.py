"""Edit videos with a trained model: `KiwiEditor` works on arrays or files, `edit_file` is the command `kiwi edit`."""

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
