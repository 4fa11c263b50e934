"""Child processes that end with the process that started them."""

import ctypes
import os
import signal
import sys
import time
from multiprocessing import connection, parent_process
from threading import Thread

PR_SET_PDEATHSIG = 1
"""Option of Linux' prctl(2): the signal to send when the parent process dies."""

POLL_SECONDS = 0.2
"""Seconds between two looks for a parent that did not start this process with `multiprocessing`."""


def end_with_parent(worker: int = 0, *, parent_id: int | None = None) -> None:
    """Make this process exit when its parent dies, whichever way it was started.

    PyTorch's data workers look for their parent only while they wait for work: a worker that is writing a batch to a
    pipe, which nobody reads, would stay for ever with all its memory.

    Args:
        worker: number of a data worker, so that this can be the `worker_init_fn` of a data loader.
        parent_id: id of the parent, if that may have died before this call.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # For other systems, for a parent that has died already, and for the start method "forkserver", whose server is the
    # parent of all workers.
    thread = Thread(target=_exit_after_parent, args=[parent_id or os.getppid()], name="end_with_parent", daemon=True)
    thread.start()


def _exit_after_parent(parent_id: int) -> None:
    if (parent := parent_process()) is not None:
        connection.wait([parent.sentinel])
    else:
        while os.getppid() == parent_id:
            time.sleep(POLL_SECONDS)
    os._exit(1)
