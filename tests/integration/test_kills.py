"""benchmarks/resume/kills.py on a tiny run: one kill while a checkpoint is written, one between two checkpoints."""

import subprocess
import sys
from pathlib import Path

from kiwi.training.checkpointing import newest_checkpoint
from kiwi.training.run_log import read_log
from tests.integration.conftest import editor_config, write_yaml

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "resume" / "kills.py"


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(runs, edit_folder, tmp_path):
    config = editor_config(edit_folder, tmp_path / "unused", runs / "vae" / "model", max_steps=12, log_every_n_steps=1)
    config["trainer"]["limit_val_batches"] = 0
    config["checkpoint"] = {"every_n_train_steps": 2}
    config["model"] |= {
        "averaging": {"type": "Ema"},
        "targets": "sample",
        "dropout": {"instruction": 0.2, "source": 0.2, "reference": 0.2},
    }
    command = [sys.executable, str(SCRIPT), "--config", write_yaml(tmp_path / "e.yaml", config)]
    command += ["--out", str(tmp_path / "kills"), "--kills", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("bitwise equal") == 7
    assert "DIFFERENT" not in done.stdout
    assert list(read_log(tmp_path / "kills/killed")) == list(range(1, 13))
    assert newest_checkpoint(tmp_path / "kills/killed/checkpoints")
