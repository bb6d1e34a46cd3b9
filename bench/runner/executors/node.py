"""What a sweep's driver asks of another machine, in a process there: to look at itself, and to run cells."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.errors import UsageError
from bench.records.environment import ALLOCATOR_VARIABLES, THREAD_VARIABLES
from bench.records.predictions import Plan
from bench.records.records import Failure, Measurement, Record
from bench.runner.executors import Machine
from bench.runner.executors.local import LocalExecutor
from bench.runner.schedule import ScheduledRun, SweepOptions
from bench.scenario.cell import Cell
from bench.workers.launch import Launcher


@dataclass(frozen=True)
class Site:
    """Where and how a driver's runs are executed: its working folder, settings of threads, and options."""

    folder: str
    settings: dict[str, str | None]
    options: SweepOptions

    @classmethod
    def of(cls, options: SweepOptions) -> "Site":
        """Return this process's. Raises ``UsageError`` for what only the driver's own machine can do."""
        if options.snapshot:
            raise UsageError("--snapshot writes on the machine that runs a cell; leave out --executor")
        settings = {name: os.environ.get(name) for name in (*THREAD_VARIABLES, *ALLOCATOR_VARIABLES)}
        return cls(os.getcwd(), settings, options)  # noqa: PTH109 - a string is what travels


class Node:
    """This process, as another machine's driver has it work."""

    def __init__(self, site: Site, launcher: Launcher | None = None) -> None:
        """Go where the driver is. Raises ``UsageError`` where that folder is not on this machine."""
        try:
            os.chdir(site.folder)
        except OSError as error:
            raise UsageError(
                f"{site.folder} is not on every machine ({error.strerror}); begin the sweep in one that all "
                "share"
            ) from None
        for name, value in site.settings.items():  # a cluster sets threads of its own
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self._here = LocalExecutor(
            options=site.options, observe=lambda _event: None, launcher=launcher or Launcher()
        )

    def look(self, cells: Sequence[Cell]) -> Machine:
        return self._here.machine(cells)

    def run(self, cell: Cell, run: int, plan: Plan | None) -> Record:
        """Run a cell, as the number given, and return its record, under this machine's own key."""
        machine = self._here.machine([cell])
        (planned,) = machine.prepared
        with self._here.serving(machine, plan, on_gpu=cell.device == "cuda" and planned.reason is None):
            return self._here.run(replace(planned, run=run))


def received(run: ScheduledRun, record: Record) -> Record:
    """Return a node's record; of one that is not like the first, that the run was not to be had there."""
    if record.key == run.key:
        return record
    why = "The node that was given this run is not like the first one; give alike nodes a sweep of their own."
    empty = Measurement(device=record.measurement.device)
    return record.replace(
        key=run.key, outcome="unavailable", failure=Failure(message=why), measurement=empty, prediction=None
    )


def of_cell(plan: Plan | None, cell: Cell) -> Plan | None:
    """Return the part of a plan that is about a cell."""
    found = [one for one in plan.cells if one.cell.id == cell.id] if plan else []
    return plan and plan.model_copy(update={"cells": tuple(found)})
