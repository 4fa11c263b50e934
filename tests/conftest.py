"""Shared by all tests: no model hub, one thread, fixed seeds, and real video clips where there are any."""

import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

# torch and huggingface_hub read these when they are imported, which no test does before this file.
os.environ["HF_HUB_OFFLINE"] = "1"
# The models of the tests are tiny: waiting for a second thread takes up to six times the CPU time of the work itself.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

CASES = Path(__file__).parent / "cases"
"""Small files of the kinds that users have reported to be read wrongly."""

settings.register_profile("kiwi", deadline=None, derandomize=True)  # no deadline, because the machine may be busy
settings.load_profile("kiwi")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Reset the global random state before every test; that of torch only if it has been imported."""
    random.seed(0)
    np.random.seed(0)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real video clips in KIWI_CLIPS; tests that need it are skipped if the variable is not set."""
    folder = os.environ.get("KIWI_CLIPS")
    if not folder:
        pytest.skip("needs real video clips: set KIWI_CLIPS to their folder")
    path = Path(folder).resolve()
    if not path.is_dir():
        pytest.fail(f"KIWI_CLIPS is not a folder: {folder}")
    return path


@pytest.fixture(scope="session")
def tiny_config() -> Any:
    """A complete editor of a few thousand weights: Wan VAE, Qwen2.5-VL, both connectors, DiT, source and reference."""
    from kiwi.models.connectors import QueryConnector
    from kiwi.models.dit.transformer import DiTConfig
    from kiwi.models.kiwi import KiwiConfig
    from kiwi.models.mllm.new_qwen import NewQwen
    from kiwi.models.vae.wan import NewVae

    return KiwiConfig(
        dit=DiTConfig(dim=48, ffn_dim=96, num_heads=2, num_layers=2, freq_dim=32, latent_channels=4),
        vae=NewVae(z_dim=4, base_dim=4),
        mllm=NewQwen(hidden_size=32, layers=2, vision_layers=1),
        query=QueryConnector(image=3, video=4, reference=5),
    )


@pytest.fixture(scope="session")
def edit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips in which a red square becomes blue, in the manifests video.csv and (three of them) reference.csv.

    The manifest of videos has masks of the square; that of references has none.
    """
    from kiwi.media.image import write_image
    from kiwi.media.video import write_video

    folder = tmp_path_factory.mktemp("edits")
    rows = {"video.csv": ["src_video,tgt_video,prompt,mask"], "reference.csv": ["src_video,tgt_video,ref_image,prompt"]}
    for index in range(6):
        clips = {"source": (220, 40, 40), "target": (40, 60, 220), "mask": (255, 255, 255)}
        for name, colour in clips.items():
            frames = np.full((6, 40, 56, 3), 0 if name == "mask" else 200 - 10 * index, np.uint8)
            for time in range(6):
                frames[time, 8 + 2 * time : 24 + 2 * time, 4 * index : 4 * index + 16] = colour
            write_video(folder / f"{index}_{name}.mp4", frames, 8, crf=12)
        write_image(folder / f"{index}.png", np.full((30, 20, 3), (40, 60, 220), np.uint8))
        pair = f"{index}_source.mp4,{index}_target.mp4"
        rows["video.csv"].append(f"{pair},Make the red square number {index} blue.,{index}_mask.mp4")
        if index < 3:
            rows["reference.csv"].append(f"{pair},{index}.png,Give the square the colour of the reference.")
    for name, lines in rows.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder
