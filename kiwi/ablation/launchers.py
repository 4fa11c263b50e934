"""Where runs run: processes of this machine, or jobs of a Slurm cluster (submitit, the extra `cluster`)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from kiwi.ablation.runs import execute, start_anew, stop_all
from kiwi.errors import InputError

POLL = 10.0
"""Seconds between looks at a cluster's jobs."""


class Launcher(Protocol):
    """Runs folders of claimed runs."""

    def launch(self, folders: Sequence[Path]) -> Iterator[tuple[Path, str]]:
        """Yield each folder twice: with "running" when it begins, with "ended" when it has ended."""
        ...


class Local:
    """Several runs at once on this machine.

    Args:
        jobs: at once.
        threads: of the CPU for each: another number moves the last digits of results, another number of jobs does not.
        devices: accelerators, as CUDA numbers them, shared out among the jobs; none without.
    """

    def __init__(self, jobs: int = 1, threads: int = 1, devices: Sequence[str] = ()) -> None:
        if jobs < 1 or threads < 1:
            raise InputError("runs need a job and a thread", got=f"jobs {jobs}, threads {threads}", wanted="1 or more")
        self.jobs, self.threads = jobs, threads
        self.free: SimpleQueue[str | None] = SimpleQueue()
        for job in range(jobs):
            self.free.put(devices[job % len(devices)] if devices else None)

    def launch(self, folders: Sequence[Path]) -> Iterator[tuple[Path, str]]:
        """As `Launcher`; what is running dies with whoever waits for it."""
        told: SimpleQueue[tuple[Path, str]] = SimpleQueue()
        pool = ThreadPoolExecutor(self.jobs)
        waiting = [pool.submit(self._run, folder, told) for folder in folders]
        try:
            for _ in range(2 * len(folders)):
                yield told.get()
            for done in as_completed(waiting):
                done.result()
        finally:
            for one in waiting:
                one.cancel()
            stop_all()
            pool.shutdown(wait=True, cancel_futures=True)
            start_anew()

    def _run(self, folder: Path, told: SimpleQueue[tuple[Path, str]]) -> None:
        told.put((folder, "running"))
        device = self.free.get()
        try:
            execute(folder, self.threads, device)
        finally:
            self.free.put(device)
            told.put((folder, "ended"))


class Cluster:
    """A job of Slurm a run; jobs go on if whoever waits for them is gone, and the same command finds what they left.

    Args:
        folder: for submitit's own files.
        jobs: at once, at most.
        threads: of the CPU for each.
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
            raise InputError("jobs of a cluster need submitit", fix="pip install 'kiwi-video[cluster]'") from None
        try:
            self.executor = submitit.AutoExecutor(folder=folder, cluster=kind)
            given = {"cpus_per_task": threads, "timeout_min": 24 * 60, **(options or {})}
            if kind == "slurm":
                given.setdefault("slurm_array_parallelism", jobs)
            self.executor.update_parameters(**given)
        except (RuntimeError, ValueError, NameError, TypeError) as problem:
            raise InputError("the cluster's jobs cannot be set up", got=" ".join(str(problem).split())) from None
        self.threads = threads

    def launch(self, folders: Sequence[Path]) -> Iterator[tuple[Path, str]]:
        """As `Launcher`."""
        with self.executor.batch():
            jobs = {folder: self.executor.submit(execute, folder.resolve(), self.threads) for folder in folders}
        begun: set[Path] = set()
        while jobs:
            for folder, job in list(jobs.items()):
                if folder not in begun and job.state.upper() in ("RUNNING", "COMPLETED", "FAILED"):
                    begun.add(folder)
                    yield folder, "running"
                if job.done():
                    del jobs[folder]
                    yield folder, "ended"
            if jobs:
                time.sleep(POLL)
