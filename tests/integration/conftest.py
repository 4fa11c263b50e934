"""A model trained by the commands themselves: a VAE, then an editor, a few steps each, on six tiny clips."""

from pathlib import Path

import pytest
import yaml

from kiwi.__main__ import main

TRAINER = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "val_check_interval": 2}
MANIFESTS = [{"type": "Manifest", "path": f"{name}.csv", "max_frames": 5} for name in ("video", "reference")]


def vae_config(data: Path, run: Path, **trainer: object) -> dict:
    """The configuration of `kiwi fit` for an autoencoder."""
    return {
        "trainer": {**TRAINER, "max_steps": 2, "default_root_dir": str(run), **trainer},
        "model": {"type": "LitVae", "vae": {"type": "NewVae", "z_dim": 4, "base_dim": 4}},
        "data": _data(data),
        "previews": {"items": 1},
    }


def editor_config(data: Path, run: Path, vae: Path, **trainer: object) -> dict:
    """The configuration of `kiwi fit` for an editor."""
    config = {
        "dit": {"dim": 48, "ffn_dim": 96, "num_heads": 2, "num_layers": 2, "freq_dim": 32, "latent_channels": 4},
        "vae": {"type": "WanVae", "path": str(vae)},
        "mllm": {"type": "NewQwen", "hidden_size": 32, "vision_layers": 1},
        "query": {"type": "QueryConnector", "image": 3, "video": 4, "reference": 5},
    }
    return {
        "trainer": {**TRAINER, "max_steps": 3, "default_root_dir": str(run), **trainer},
        "model": {
            "type": "LitKiwi",
            "config": config,
            "optim": {"lr": 1e-3, "warmup_steps": 1},
            "sampling": {"steps": 2},
        },
        "data": _data(data),
        "previews": {"items": 2},
        "checkpoint": {"every_n_train_steps": 2},
    }


def write_yaml(path: Path, config: dict) -> str:
    """Write a configuration and return its path."""
    path.write_text(yaml.safe_dump(config))
    return str(path)


def _data(folder: Path) -> dict:
    return {
        "root": str(folder),
        "train": MANIFESTS,
        "max_pixels": 1024,
        "batch_size": 2,
        "holdout": 2,
        "num_workers": 0,
    }


@pytest.fixture(scope="session")
def runs(edit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished runs `vae` and `editor`."""
    folder = tmp_path_factory.mktemp("runs")
    vae = write_yaml(folder / "vae.yaml", vae_config(edit_folder, folder / "vae"))
    assert main(["fit", "--config", vae]) == 0
    editor = write_yaml(folder / "editor.yaml", editor_config(edit_folder, folder / "editor", folder / "vae" / "model"))
    assert main(["fit", "--config", editor]) == 0
    return folder
