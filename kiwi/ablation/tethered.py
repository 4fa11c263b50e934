"""`python -m kiwi.ablation.tethered ...`: kiwi in a process that dies with the one that started it.

A study that is killed leaves nothing behind that trains on and writes where the next one goes on (on Linux).
"""

import ctypes
import signal
import sys

from kiwi.__main__ import main

PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    sys.exit(main())
