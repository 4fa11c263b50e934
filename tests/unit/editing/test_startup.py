"""Modules that an edit does not need are not imported: imports take most of the CPU time of a small edit."""

import subprocess
import sys

import pytest

SCRIPTS = {
    "import kiwi.editing": ("torch", "transformers", "diffusers", "peft", "scipy", "matplotlib", "lightning"),
    "import kiwi.editing.editor": ("peft", "diffusers", "lightning", "torchmetrics", "matplotlib", "deepspeed"),
    # The shipped editor has adapters, and diffusers' VAE module imports peft in any case.
    "from kiwi.editing import KiwiEditor; KiwiEditor.from_pretrained('sandbox', device='cpu')": (
        "lightning", "torchmetrics", "matplotlib", "deepspeed", "transformers.models.umt5",
    ),
}  # fmt: skip
"""Modules that a piece of code must not import."""


@pytest.mark.parametrize("code", SCRIPTS)
def test_modules_that_an_edit_does_not_need_are_not_imported(code):
    report = f"import sys; print(*[name for name in {SCRIPTS[code]} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
