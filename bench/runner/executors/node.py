"""What a sweep's driver asks of another machine, in a process there: to look at itself, and to run cells."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.errors import UsageError
from bench.records.environment import ALLOCATOR_VARIABLES, THREAD_VARIABLES
from bench.records.predictions import Plan
from bench.records.readings import Part
from bench.records.records import (
    DeviceFacts,
    Environment,
    Failure,
    Measurement,
    Record,
    decode_record,
    encode_record,
)
from bench.runner.executors.local import LocalExecutor
from bench.runner.schedule import KEY_MACHINE, ScheduledRun, SweepOptions
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


class Prepared(Part, frozen=True):
    """What a node makes of a cell: its key there, and why it cannot be run there, if so."""

    key: str
    reason: str | None
    inputs_digest: str | None


class Look(Part, frozen=True):
    """What a node is, and its keys of the cells that were asked about, in their order."""

    environment: Environment
    facts: DeviceFacts
    prepared: tuple[Prepared, ...]

    def runs(self, cells: Sequence[Cell]) -> list[ScheduledRun]:
        """Return the first run of each of these cells."""
        return [
            ScheduledRun(cell=cell, key=one.key, reason=one.reason, inputs_digest=one.inputs_digest)
            for cell, one in zip(cells, self.prepared, strict=True)
        ]

    def unlike(self, other: "Look") -> str:
        """Return in a few words how another node's runs would not be the same as this one's; empty if not."""
        mine, its = self.identity, other.identity
        for name in mine:
            if mine[name] != its.get(name):
                return f"{name} is {its.get(name)} there and {mine[name]} on the first"
        differing = [
            one for one, its in zip(self.prepared, other.prepared, strict=True) if one.key != its.key
        ]
        return f"data or weights of {len(differing)} cells are others or missing there" if differing else ""

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


class Node:
    """This process, as another machine's driver has it work."""

    def __init__(self, site: Site) -> None:
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
        self._here = LocalExecutor(options=site.options, observe=lambda _event: None, launcher=Launcher())

    def look(self, cells_json: Sequence[str]) -> bytes:
        """Return a ``Look`` as JSON."""
        import msgspec

        machine = self._here.machine([Cell.model_validate_json(text) for text in cells_json])
        prepared = tuple(Prepared(run.key, run.reason, run.inputs_digest) for run in machine.prepared)
        return msgspec.json.encode(Look(machine.environment, machine.facts, prepared))

    def run(self, cell_json: str, run: int, plan_json: str | None) -> bytes:
        """Run a cell, as the number given, and return its record as JSON, under this machine's own key."""
        plan = Plan.model_validate_json(plan_json) if plan_json else None
        cell = Cell.model_validate_json(cell_json)
        machine = self._here.machine([cell])
        (planned,) = machine.prepared
        with self._here.serving(machine, plan, on_gpu=cell.device == "cuda" and planned.reason is None):
            return encode_record(self._here.run(replace(planned, run=run)))


def received(run: ScheduledRun, content: bytes) -> Record:
    """Return a node's record; of one that is not like the first, that the run was not to be had there."""
    record = decode_record(content)
    if record.key == run.key:
        return record
    why = "The node that was given this run is not like the first one; give alike nodes a sweep of their own."
    empty = Measurement(device=record.measurement.device)
    return record.replace(
        key=run.key, outcome="unavailable", failure=Failure(message=why), measurement=empty, prediction=None
    )
