"""Names and folders of the models that are shipped with kiwi."""

from pathlib import Path

import kiwi

ROOT = Path(kiwi.__file__).parent / "sandbox" / "weights"

EDITOR = "sandbox"
"""Name of the editor that `kiwi edit`, `kiwi bench` and `kiwi sandbox measure` use by default."""

VAE = "sandbox/vae"
MLLM = "sandbox/mllm"

FOLDERS = {EDITOR: ROOT / "editor"} | {
    f"sandbox/{name}": ROOT / name for name in ("base", "editor", "mllm", "stage2", "vae")
}
"""Model name -> folder."""
