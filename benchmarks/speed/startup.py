"""CPU time of `kiwi edit` on one sandbox clip, relative to importing torch and Qwen2.5-VL from transformers.

Both run alternately in single-threaded processes (threads waiting for work would count as CPU time); the medians are
compared. The ratio must stay below 1.6.

On a 2-core EPYC it is 6.7 s to 4.8 s. The difference: 1.0 s for diffusers, whose VAE module imports all other
autoencoders, schedulers (scipy.stats) and peft; 0.3 s for loading the editor and its adapters; 0.3 s for the edit;
0.2 s for PyAV and rich.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from kiwi import console
from kiwi.media.video import write_video
from kiwi.sandbox.pairs import make_pair

LIMIT = 1.6
"""Largest accepted ratio."""

IMPORTS = "import torch, transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"


def measure_cpu_seconds(arguments: list[str]) -> float:
    """Run Python with these arguments; returns the user and system time of the process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


def main() -> int:
    """Measure and print the ratio; returns exit code 1 above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs; the result is their median (default: 5)")
    parser.add_argument("--model", default="sandbox", help="model folder or hub id (default: sandbox)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clip, out = Path(folder) / "clip.mp4", Path(folder) / "out.mp4"
        pair = make_pair(1, 0, frames=5, height=32, width=32)
        write_video(clip, pair.source, 8)
        edit = ["-m", "kiwi", "edit", str(clip), "--instruction", pair.instruction, "--out", str(out)]
        edit += ["--model", options.model, "--device", "cpu"]
        edits, imports = [], []
        for _ in range(options.repeats):
            imports.append(measure_cpu_seconds(["-c", IMPORTS]))
            edits.append(measure_cpu_seconds(edit))
    seconds, baseline = statistics.median(edits), statistics.median(imports)
    ratio = seconds / baseline
    console.print(f"kiwi edit {seconds:.2f} s, imports {baseline:.2f} s, ratio {ratio:.2f} (limit {LIMIT})")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
