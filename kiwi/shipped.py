"""Models that come with the package, by name. No other module knows where they lie or what they are called."""

from __future__ import annotations

from pathlib import Path

import kiwi

ROOT = Path(kiwi.__file__).parent / "sandbox" / "weights"

EDITOR = "sandbox"
"""The editor that `kiwi edit`, `kiwi bench` and `kiwi sandbox measure` use when no model is named."""

VAE = "sandbox/vae"
MLLM = "sandbox/mllm"

FOLDERS = {EDITOR: ROOT / "editor"} | {
    f"sandbox/{name}": ROOT / name for name in ("base", "editor", "mllm", "stage2", "vae")
}
"""The folder of every shipped model."""
