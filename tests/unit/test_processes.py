"""Child processes end with their parent: data workers of every start method, and those of a study's processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="counts processes in /proc")

WORKERS = """
import sys
from torch.utils.data import DataLoader
from kiwi.processes import end_with_parent

class Large:
    def __len__(self):
        return 1000
    def __getitem__(self, index):
        return b"x" * 10**6  # fills the pipe to the training process, which does not read it

if __name__ == "__main__":
    options = {"num_workers": 1, "collate_fn": list, "worker_init_fn": end_with_parent}
    loaders = [DataLoader(Large(), multiprocessing_context=method, **options) for method in sys.argv[-1].split(",")]
    iterators = [iter(loader) for loader in loaders]
    for iterator in iterators:
        next(iterator)
    print("ready", flush=True)
    import time
    time.sleep(60)
"""

STUDY = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "from kiwi.processes import end_with_parent; end_with_parent(); "
    "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')", *sys.argv[1:]], start_new_session=True)
time.sleep(60)
"""


def processes_of(script):
    """Ids of all processes whose environment names the script."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment, state = (folder / "environ").read_bytes(), (folder / "stat").read_text().rpartition(")")[2]
        except OSError:
            continue
        if f"PROBE={script}".encode() in environment and "Z" not in state.split()[0]:
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize(("methods", "in_study"), [("fork,fork,forkserver,spawn", False), ("fork,fork", True)])
def test_a_kill_leaves_no_process(tmp_path, methods, in_study):
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    parent = subprocess.Popen(
        [sys.executable, *(["-c", STUDY] if in_study else []), str(script), methods],
        env=os.environ | {"PROBE": str(script)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout.readline() == "ready\n"
    assert len(processes_of(script)) >= 3 + in_study
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while processes_of(script) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = processes_of(script)
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert left == []
