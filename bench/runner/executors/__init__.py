"""Where a sweep's runs are executed: by this process, on the nodes of a Ray cluster, or as SLURM's jobs.

Whoever executes, the driver alone plans, locks the results folder and writes to it.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from bench.records.predictions import Plan
from bench.records.records import DeviceFacts, Environment, Record
from bench.runner.schedule import KEY_MACHINE, ScheduledRun
from bench.scenario.cell import Cell


@dataclass(frozen=True)
class Machine:
    """What runs are executed on, and the first run there of each cell that was asked about, in order."""

    environment: Environment
    facts: DeviceFacts
    prepared: Sequence[ScheduledRun]

    def unlike(self, other: "Machine") -> str:
        """Return in a few words how another one's runs would not be the same as this one's; empty if not."""
        mine, its = self.identity, other.identity
        for name in mine:
            if mine[name] != its.get(name):
                return f"{name} is {its.get(name)} there and {mine[name]} on the first"
        pairs = zip(self.prepared, other.prepared, strict=True)
        differing = sum(one.key != its.key for one, its in pairs)
        return f"data or weights of {differing} cells are others or missing there" if differing else ""

    @property
    def identity(self) -> Mapping[str, object]:
        """What has to be the same for runs to be, by name."""
        environment, facts = self.environment, self.facts
        return {
            **{name: environment.machine.get(name) for name in KEY_MACHINE},
            **environment.versions,
            **environment.threads,
            "GPU": facts.cuda_name,
            "cpu_threads": facts.cpu_threads,
        }


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
