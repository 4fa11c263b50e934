"""The model: `KiwiEdit` in kiwi.py composes it, and every part that the paper ablates has a file of its name."""
