"""Runs as SLURM's jobs, one each, by submitit."""

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.errors import InfrastructureError, UsageError, first_line, not_installed
from bench.io import cache_folder, make_folder
from bench.records.predictions import Plan
from bench.records.records import Record
from bench.runner import schedule
from bench.runner.executors import Ended, Machine
from bench.runner.executors.node import Node, Site, of_cell, received
from bench.runner.schedule import Observe, ScheduledRun, SweepOptions
from bench.scenario.cell import Cell
from bench.workers import interrupts
from bench.workers.launch import FOR_ONE, Launcher

_POLL_S = 2.0
_AT_ONCE = 1000
"""Jobs that wait in SLURM's queue; more are submitted as these end."""


@dataclass(kw_only=True)
class SlurmExecutor:
    """Submits a job for each run; ``parameters`` are submitit's, such as ``slurm_partition``."""

    options: SweepOptions
    observe: Observe
    parameters: Mapping[str, str] = field(default_factory=dict)
    cluster: str = "slurm"
    poll_s: float = _POLL_S
    slots: int = _AT_ONCE
    _running: dict[str, tuple[ScheduledRun, Any]] = field(default_factory=dict)
    _plan: Plan | None = None

    def machine(self, cells: Sequence[Cell]) -> Machine:
        """Look at one node by a job. Raises ``UsageError`` for parameters that submitit does not know."""
        self._executor = self._connected()
        self._site = Site.of(self.options)
        self.observe(schedule.Preparing("waiting for a first job, which looks at its node"))
        job = self._executor.submit(look_there, self._site, cells)
        try:
            self._wait([job])
            found: Machine = job.result()
        except self._submitit.core.utils.FailedJobError as error:
            raise InfrastructureError(
                f"the first job failed: {_said(error)}; its log is {job.paths.stderr}"
            ) from None
        finally:
            job.cancel()
        return found

    @contextlib.contextmanager
    def serving(self, machine: Machine, plan: Plan | None, *, on_gpu: bool) -> Iterator[None]:
        """Cancel on the way out what has not ended."""
        del machine, on_gpu  # each job's node holds its GPU itself
        self._plan = plan
        try:
            yield
        finally:
            for _, job in self._running.values():
                job.cancel()

    def start(self, run: ScheduledRun) -> None:
        plan = of_cell(self._plan, run.cell)
        job = self._executor.submit(run_there, self._site, run.cell, run.run, plan)
        self.observe(schedule.RunStarted(run.cell, run.run))
        self._running[job.job_id] = run, job

    def next_end(self) -> Ended:
        """Wait for one. A job that left no result was lost with its node, or ended by SLURM."""
        with interrupts.waiting():
            done = self._wait([job for _, job in self._running.values()])
        run, job = self._running.pop(done.job_id)
        try:
            record = received(run, job.result())
        except (
            self._submitit.core.utils.UncompletedJobError,
            self._submitit.core.utils.FailedJobError,
        ) as error:
            self.observe(
                schedule.Note(f"Job {job.job_id} ended without a record of {run.cell.id}: {_said(error)}.")
            )
            return Ended(run, None)
        return Ended(run, record)

    def _wait(self, jobs: Sequence[Any]) -> Any:
        while True:
            for job in jobs:
                if job.done():
                    return job
            time.sleep(self.poll_s)

    def _connected(self) -> Any:
        try:
            import submitit
        except ImportError:
            raise UsageError(not_installed("--executor slurm", "submitit", "--executor local")) from None
        self._submitit = submitit
        logs = cache_folder() / "slurm"
        make_folder(logs)
        folder = tempfile.mkdtemp(dir=logs)
        given = {name: int(value) if value.isdigit() else value for name, value in self.parameters.items()}
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=self.cluster)
            executor.update_parameters(name="bench", **given)
        except RuntimeError as error:
            why = (
                "srun is not found here; start this where SLURM's jobs are submitted, or leave --executor out"
            )
            raise UsageError(f"--executor slurm: {why}") from error
        except (NameError, ValueError, TypeError) as error:
            raise UsageError(f"--executor slurm: {first_line(error)}") from error
        return executor


def look_there(site: Site, cells: Sequence[Cell]) -> Machine:
    """Have this job's machine look at itself."""
    return Node(site, Launcher(preload=FOR_ONE)).look(cells)


def run_there(site: Site, cell: Cell, run: int, plan: Plan | None) -> Record:
    """Have this job's machine run a cell."""
    return Node(site).run(cell, run, plan)


def _said(error: Exception) -> str:
    """Return the last line of a job's traceback."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip().rstrip(".")
