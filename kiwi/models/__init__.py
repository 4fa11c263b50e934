"""The model: `KiwiEdit` in kiwi.py composes its parts; each part that the paper ablates is a file of that name."""
