"""Launchers execute runs: as local processes, or as Slurm jobs with submitit (`pip install kiwi-video[cluster]`)."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, Protocol

from kiwi.ablation.runs import execute_run
from kiwi.ablation.steps import reset_stop_flag, stop_all
from kiwi.errors import InputError

POLL_SECONDS = 10.0
"""Seconds between two queries of the states of cluster jobs."""

RunEvent = tuple[Path, Literal["running", "ended"]]
"""The folder of a run, and whether the run started or ended."""


class Launcher(Protocol):
    """Interface of launchers, which execute runs whose folders were prepared by `prepare_run`."""

    def launch(self, folders: Sequence[Path]) -> Iterator[RunEvent]:
        """Execute runs; yield "running" when a run starts and "ended" when it finishes, fails or is stopped."""
        ...


class LocalLauncher:
    """Executes several runs at once as processes of this machine.

    Args:
        jobs: number of runs at once; it does not affect results.
        threads: number of CPU threads per run; it affects the last digits of results.
        devices: CUDA device ids, which are distributed over the jobs; empty to use only the CPU.
    """

    def __init__(self, jobs: int = 1, threads: int = 1, devices: Sequence[str] = ()) -> None:
        self.jobs, self.threads = jobs, threads
        self.free_devices: SimpleQueue[str | None] = SimpleQueue()
        for job in range(jobs):
            self.free_devices.put(devices[job % len(devices)] if devices else None)

    def launch(self, folders: Sequence[Path]) -> Iterator[RunEvent]:
        """Execute runs and yield their events; closing the iterator kills the runs that have not ended."""
        events: SimpleQueue[RunEvent] = SimpleQueue()
        pool = ThreadPoolExecutor(self.jobs)
        futures = [pool.submit(self._execute_run, folder, events) for folder in folders]
        try:
            for _ in range(2 * len(folders)):
                yield events.get()
            for future in as_completed(futures):
                future.result()
        finally:
            for future in futures:
                future.cancel()
            stop_all()
            pool.shutdown(wait=True, cancel_futures=True)
            reset_stop_flag()

    def _execute_run(self, folder: Path, events: SimpleQueue[RunEvent]) -> None:
        events.put((folder, "running"))
        device = self.free_devices.get()
        try:
            execute_run(folder, self.threads, device)
        finally:
            self.free_devices.put(device)
            events.put((folder, "ended"))


class ClusterLauncher:
    """Submits one Slurm job per run. Jobs continue if this process dies; rerunning the command finds their results.

    Args:
        folder: folder for submitit's logs and pickles.
        jobs: maximum number of jobs at once.
        threads: number of CPU threads per run.
        options: parameters of submitit's executor, such as timeout_min, slurm_partition or gpus_per_node.
        cluster: cluster type of submitit's `AutoExecutor`, such as slurm or local.
    """

    def __init__(
        self, folder: Path, jobs: int = 16, threads: int = 1, options: Mapping[str, Any] | None = None,
        cluster: str = "slurm",
    ) -> None:  # fmt: skip
        try:
            import submitit
        except ImportError:
            problem, fix = "cluster jobs need submitit, which is not installed", "pip install 'kiwi-video[cluster]'"
            raise InputError(problem, code="missing-package", fix=fix) from None
        try:
            self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            parameters = {"cpus_per_task": threads, "timeout_min": 24 * 60, **(options or {})}
            if cluster == "slurm":
                parameters.setdefault("slurm_array_parallelism", jobs)
            self.executor.update_parameters(**parameters)
        except (RuntimeError, ValueError, NameError, TypeError) as error:
            got, fix = " ".join(str(error).split()), "check the options given with --slurm"
            raise InputError("cannot submit to the cluster", code="cluster-unavailable", got=got, fix=fix) from None
        self.threads = threads

    def launch(self, folders: Sequence[Path]) -> Iterator[RunEvent]:
        """Submit all runs at once and yield their events."""
        with self.executor.batch():
            jobs = {folder: self.executor.submit(execute_run, folder.resolve(), self.threads) for folder in folders}
        started: set[Path] = set()
        while jobs:
            for folder, job in list(jobs.items()):
                if folder not in started and job.state.upper() in ("RUNNING", "COMPLETED", "FAILED"):
                    started.add(folder)
                    yield folder, "running"
                if job.done():
                    del jobs[folder]
                    yield folder, "ended"
            if jobs:
                time.sleep(POLL_SECONDS)
