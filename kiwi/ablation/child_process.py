"""`python -m kiwi.ablation.child_process ...`: kiwi in a process that dies with the one that started it.

A study that is killed leaves nothing behind that trains on and writes where the next one goes on (on Linux).
"""

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.environ.get("KIWI_TETHERED_TO", str(os.getppid())) != str(os.getppid()):
            sys.exit(1)  # it was gone before
    runpy.run_module("kiwi", run_name="__main__", alter_sys=True)
