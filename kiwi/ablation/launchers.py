"""Launchers start runs: as processes of this machine, or as jobs of a Slurm cluster (submitit, the extra `cluster`)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, Protocol

from kiwi.ablation.runs import execute
from kiwi.ablation.steps import reset_stop_flag, stop_all
from kiwi.errors import InputError

POLL = 10.0
"""Seconds between two queries of a cluster's jobs."""

Event = tuple[Path, Literal["running", "ended"]]
"""A run's folder, and what happened to it."""


class Launcher(Protocol):
    """Executes runs whose folders were prepared (`prepare_run`)."""

    def launch(self, folders: Sequence[Path]) -> Iterator[Event]:
        """Yield two events for each folder: "running" when it starts and "ended" when it ends, whatever its result."""
        ...


class Local:
    """Several runs at once on this machine.

    Args:
        jobs: runs at once; does not change any number.
        threads: CPU threads of each run; another number changes the last digits of results.
        devices: accelerators, as CUDA numbers them, distributed over the jobs; empty for CPU only.
    """

    def __init__(self, jobs: int = 1, threads: int = 1, devices: Sequence[str] = ()) -> None:
        self.jobs, self.threads = jobs, threads
        self.free: SimpleQueue[str | None] = SimpleQueue()
        for job in range(jobs):
            self.free.put(devices[job % len(devices)] if devices else None)

    def launch(self, folders: Sequence[Path]) -> Iterator[Event]:
        """As `Launcher`; closing the iterator kills the runs that are still running."""
        events: SimpleQueue[Event] = SimpleQueue()
        pool = ThreadPoolExecutor(self.jobs)
        futures = [pool.submit(self._run, folder, events) for folder in folders]
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

    def _run(self, folder: Path, events: SimpleQueue[Event]) -> None:
        events.put((folder, "running"))
        device = self.free.get()
        try:
            execute(folder, self.threads, device)
        finally:
            self.free.put(device)
            events.put((folder, "ended"))


class Cluster:
    """A Slurm job per run. Jobs continue if the process that waits for them dies; the same command finds their results.

    Args:
        folder: for submitit's own files.
        jobs: jobs at once, at most.
        threads: CPU threads of each run.
        options: of submitit's executor, such as timeout_min, slurm_partition, gpus_per_node.
        kind: submitit's name of the cluster.
    """

    def __init__(
        self, folder: Path, jobs: int = 16, threads: int = 1, options: Mapping[str, Any] | None = None,
        kind: str = "slurm",
    ) -> None:  # fmt: skip
        try:
            import submitit
        except ImportError:
            raise InputError(
                "submitit is not installed; cluster jobs need it", code="missing-package",
                fix="pip install 'kiwi-video[cluster]'",
            ) from None  # fmt: skip
        try:
            self.executor = submitit.AutoExecutor(folder=folder, cluster=kind)
            parameters = {"cpus_per_task": threads, "timeout_min": 24 * 60, **(options or {})}
            if kind == "slurm":
                parameters.setdefault("slurm_array_parallelism", jobs)
            self.executor.update_parameters(**parameters)
        except (RuntimeError, ValueError, NameError, TypeError) as problem:
            raise InputError(
                "cannot set up cluster jobs", code="cluster-unavailable", got=" ".join(str(problem).split())
            ) from None
        self.threads = threads

    def launch(self, folders: Sequence[Path]) -> Iterator[Event]:
        """As `Launcher`."""
        with self.executor.batch():
            jobs = {folder: self.executor.submit(execute, folder.resolve(), self.threads) for folder in folders}
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
                time.sleep(POLL)
