"""Where a sweep's runs are executed: by this process, on the nodes of a Ray cluster, or as SLURM's jobs.

Whoever executes, the driver alone plans, locks the results folder and writes to it.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from bench.records.predictions import Plan
from bench.records.records import DeviceFacts, Environment, Record
from bench.runner.schedule import ScheduledRun
from bench.scenario.cell import Cell


@dataclass(frozen=True)
class Machine:
    """What runs are executed on, and each cell's first run there."""

    environment: Environment
    facts: DeviceFacts
    prepared: Sequence[ScheduledRun]


@dataclass(frozen=True)
class Ended:
    """A run that has ended; ``record`` is None where the machine was lost with it."""

    run: ScheduledRun
    record: Record | None


class Executor(Protocol):
    """Executes runs, ``slots`` of them at a time."""

    @property
    def slots(self) -> int: ...

    def machine(self, cells: Sequence[Cell]) -> Machine:
        """Look at the machines, before anything else is asked of them."""

    def serving(self, machine: Machine, plan: Plan | None, *, on_gpu: bool) -> AbstractContextManager[None]:
        """Hold what runs need meanwhile; on the way out end those that have not ended."""

    def start(self, run: ScheduledRun) -> None:
        """Begin a run where a slot is free."""

    def next_end(self) -> Ended:
        """Wait for a run to end."""
