"""The script that kills runs, on a tiny run: one kill inside the writing of a checkpoint, one between two."""

import subprocess
import sys
from pathlib import Path

from kiwi.training.checkpointing import newest
from kiwi.training.run_log import read_log
from tests.integration.conftest import editor_config, write_yaml

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "resume" / "kills.py"


def test_a_run_that_was_killed_ends_as_the_unbroken_one(runs, edit_folder, tmp_path):
    config = editor_config(edit_folder, tmp_path / "unused", runs / "vae" / "model", max_steps=12, log_every_n_steps=1)
    config["trainer"]["limit_val_batches"] = 0
    config["checkpoint"] = {"every_n_train_steps": 2}
    config["model"] |= {
        "averaging": {"type": "Ema"},
        "targets": "sample",
        "dropout": {"instruction": 0.2, "source": 0.2, "reference": 0.2},
    }
    command = [sys.executable, str(SCRIPT), "--config", write_yaml(tmp_path / "e.yaml", config)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "kills"), "--kills", "2"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal to the bit") == 7
    assert "DIFFERENT" not in done.stdout
    assert list(read_log(tmp_path / "kills/broken")) == list(range(1, 13))
    assert newest(tmp_path / "kills/broken/checkpoints")
