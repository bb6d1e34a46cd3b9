"""What a sweep's driver asks of another machine, in a process there: to look at itself, and to run cells."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench.errors import UsageError
from bench.records.environment import ALLOCATOR_VARIABLES, THREAD_VARIABLES, read_environment
from bench.records.predictions import Plan
from bench.records.readings import Part, Stored
from bench.records.records import (
    DeviceFacts,
    Environment,
    Failure,
    Measurement,
    Record,
    decode_record,
    encode_record,
)
from bench.runner import schedule
from bench.runner.executors.local import LocalExecutor
from bench.runner.schedule import KEY_MACHINE, ScheduledRun, SweepOptions
from bench.scenario.cell import Cell
from bench.workers.launch import Launcher
from bench.workers.supervise import probe


class Site(Stored):
    """Where and how a driver's runs are executed: its working folder, settings, and what it allows."""

    folder: str
    settings: dict[str, str | None]
    trust_remote_code: bool
    allow_code: tuple[str, ...]
    code_folder: str
    skip_unfit: bool

    @classmethod
    def of(cls, options: SweepOptions) -> "Site":
        """Return this process's. Raises ``UsageError`` for what only the driver's own machine can do."""
        if options.snapshot:
            raise UsageError("--snapshot writes on the machine that runs a cell; leave out --executor")
        names = (*THREAD_VARIABLES, *ALLOCATOR_VARIABLES)
        return cls(
            folder=os.getcwd(),  # noqa: PTH109 - a string is what travels
            settings={name: os.environ.get(name) for name in names},
            trust_remote_code=options.trust_remote_code,
            allow_code=tuple(options.allow_code),
            code_folder=options.code_folder,
            skip_unfit=options.skip_unfit,
        )


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

    def __init__(self, site_json: str) -> None:
        """Go where the driver is. Raises ``UsageError`` where that folder is not on this machine."""
        self._site = Site.model_validate_json(site_json)
        try:
            os.chdir(self._site.folder)
        except OSError as error:
            raise UsageError(
                f"{self._site.folder} is not on every machine ({error.strerror}); begin the sweep in one "
                "that all share"
            ) from None
        for (
            name,
            value,
        ) in self._site.settings.items():  # a cluster sets threads of its own
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self._launcher = Launcher()

    def look(self, cells_json: Sequence[str]) -> bytes:
        """Return a ``Look`` as JSON."""
        import msgspec

        environment, facts = read_environment(), probe(self._launcher)
        cells = map(Cell.model_validate_json, cells_json)
        runs = [schedule.prepare(cell, environment, facts, self._site.code_folder) for cell in cells]
        prepared = tuple(Prepared(run.key, run.reason, run.inputs_digest) for run in runs)
        return msgspec.json.encode(Look(environment, facts, prepared))

    def run(self, cell_json: str, run: int, plan_json: str | None) -> bytes:
        """Run a cell, as the number given, and return its record as JSON, under this machine's own key."""
        plan = Plan.model_validate_json(plan_json) if plan_json else None
        cell = Cell.model_validate_json(cell_json)
        options = SweepOptions(
            results=Path(),
            trust_remote_code=self._site.trust_remote_code,
            allow_code=self._site.allow_code,
            code_folder=self._site.code_folder,
            skip_unfit=self._site.skip_unfit,
        )
        here = LocalExecutor(options=options, observe=lambda _event: None, launcher=self._launcher)
        machine = here.machine([cell])
        (planned,) = machine.prepared
        with here.serving(machine, plan, on_gpu=cell.device == "cuda" and planned.reason is None):
            here.start(replace(planned, run=run))
            record = here.next_end().record
        assert record is not None  # noqa: S101 - of this process
        return encode_record(record)


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
