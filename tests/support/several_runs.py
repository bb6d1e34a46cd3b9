"""An executor that runs nothing: what a sweep does with several runs at a time, and with lost ones."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from bench.runner.executors import Ended, Machine
from bench.runner.schedule import ScheduledRun
from bench.scenario.cell import Cell
from records_factory import make_record


class Several:
    """Executes three runs at a time, the last begun first; loses those it is told to, as often as told."""

    slots = 3

    def __init__(self, losses: dict[tuple[str, int], int]) -> None:
        self.losses, self.running, self.most = losses, list[ScheduledRun](), 0

    def machine(self, cells: Sequence[Cell]) -> Machine:
        raise NotImplementedError

    def serving(self, machine: Machine, plan: Any, *, on_gpu: bool) -> Any:
        del machine, plan, on_gpu
        return nullcontext()

    def start(self, run: ScheduledRun) -> None:
        self.running.append(run)
        self.most = max(self.most, len(self.running))

    def next_end(self) -> Ended:
        run = self.running.pop()
        which = run.key[0], run.run
        self.losses[which] = self.losses.get(which, 0) - 1
        lost = self.losses[which] >= 0
        return Ended(run, None if lost else make_record(cell=run.cell, key=run.key, run=run.run))
