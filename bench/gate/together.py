"""One run of each side at once, step by step in turn: who goes on is passed from worker to worker."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.errors import InfrastructureError
from bench.gate.process import BEYOND_LIMITS_S, SideProcess, wait_for_any
from bench.gate.schedule import order_of
from bench.records.messages import ALONE, StepTurns
from bench.records.records import Record
from bench.records.sittings import SideName
from bench.scenario.types import Cell


def run_together(
    processes: Mapping[SideName, SideProcess], cell: Cell, repeat: int, numbers: Mapping[SideName, int]
) -> dict[SideName, Record]:
    """Run a cell once on each side, taking turns at steps, and return both records.

    ``numbers`` are those of the runs. A side whose run is over, however it went, leaves the rest to the
    other. Raises ``InfrastructureError`` when a side breaks down, or no pipes can be made.
    """
    first, second = order_of(repeat)
    records: dict[SideName, Record] = {}
    with _pipes() as (paths, ends):
        pipes = dict(zip((first, second), zip(paths, ends, strict=True), strict=True))
        for name, other in ((first, second), (second, first)):
            turns = StepTurns(own_pipe=pipes[name][0], other_pipe=pipes[other][0], first=name == first)
            processes[name].begin(cell, numbers[name], turns)
        deadline_s = time.monotonic() + 2 * cell.limits.timeout_s + BEYOND_LIMITS_S
        while len(records) < len(processes):
            waiting = [process for name, process in processes.items() if name not in records]
            for process in wait_for_any(waiting, deadline_s):
                if (record := process.made()) is not None:
                    records[process.side.name] = record
                    other = second if process.side.name == first else first
                    os.write(pipes[other][1], ALONE)
    return records


@contextlib.contextmanager
def _pipes() -> Iterator[tuple[tuple[str, str], tuple[int, int]]]:
    """Give two named pipes that only this user can open, and a descriptor for each.

    Opened here for both reading and writing, so that no worker waits for the other to open its end (fifo(7)).
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-turns-"))
            paths = (str(Path(folder) / "first"), str(Path(folder) / "second"))
            ends = []
            for path in paths:
                os.mkfifo(path, mode=0o600)
                ends.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
                stack.callback(os.close, ends[-1])
        except OSError as error:
            raise InfrastructureError(
                f"no named pipes could be made in {tempfile.gettempdir()} for the sides to take turns by "
                f"({error.strerror}); set TMPDIR to a local folder with room"
            ) from error
        yield paths, (ends[0], ends[1])
