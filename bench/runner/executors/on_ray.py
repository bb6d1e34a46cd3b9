"""Runs on the nodes of a Ray cluster: one at a time on each node, or on each GPU."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.errors import BenchError, InfrastructureError, UsageError, first_line, not_installed
from bench.records.predictions import Plan
from bench.runner import schedule
from bench.runner.executors import Ended, Machine
from bench.runner.executors.node import Look, Node, Site, received
from bench.runner.schedule import Observe, ScheduledRun, SweepOptions
from bench.scenario.cell import Cell
from bench.workers import interrupts

_POLL_S = 1.0
_ANSWER_S = 10.0


@dataclass(kw_only=True)
class RayExecutor:
    """Has an actor for each GPU, or for each node where cells run on the CPU. Raises as ``Executor`` says."""

    options: SweepOptions
    observe: Observe
    address: str = "auto"
    _free: list[Any] = field(default_factory=list)
    _running: dict[Any, tuple[ScheduledRun, Any]] = field(default_factory=dict)
    _plan: Plan | None = None

    @property
    def slots(self) -> int:
        return len(self._free) + len(self._running)

    def machine(self, cells: Sequence[Cell]) -> Machine:
        """Connect, and keep the nodes that are like the first one; the others are named and left out.

        Raises ``UsageError`` where ray is not installed, ``InfrastructureError`` where no cluster answers.
        """
        self._ray = _connected(self.address)
        self.observe(schedule.Preparing("looking at the nodes of the cluster"))
        actors = self._actors(on_gpu=any(cell.device == "cuda" for cell in cells))
        asked = [cell.model_dump_json() for cell in cells]
        looks = [self._look(name, actor.look.remote(asked)) for name, actor in actors]
        first = next((look for look in looks if look), None)
        if first is None:
            raise InfrastructureError(
                f"no node of the cluster {self.address} can run anything; see the notes"
            )
        for (name, actor), look in zip(actors, looks, strict=True):
            if look and not (why := first.unlike(look)):
                self._free.append(actor)
            elif look:
                self.observe(
                    schedule.Note(f"Node {name} is left out: {why}; give such nodes a sweep of their own.")
                )
        return Machine(first.environment, first.facts, first.runs(cells))

    @contextlib.contextmanager
    def serving(self, machine: Machine, plan: Plan | None, *, on_gpu: bool) -> Iterator[None]:
        """Leave the cluster on the way out; what runs is ended with its actor."""
        del machine, on_gpu  # each node holds its GPU itself
        self._plan = plan
        try:
            yield
        finally:
            for actor in [*self._free, *(actor for _, actor in self._running.values())]:
                self._ray.kill(actor)
            self._ray.shutdown()

    def start(self, run: ScheduledRun) -> None:
        actor = self._free.pop(0)
        self.observe(schedule.RunStarted(run.cell, run.run))
        reference = actor.run.remote(run.cell.model_dump_json(), run.run, of_cell(self._plan, run.cell))
        self._running[reference] = run, actor

    def next_end(self) -> Ended:
        """Wait for one. Raises ``InfrastructureError`` when no node is left."""
        with interrupts.waiting():
            ready: list[Any] = []
            while not ready:
                ready, _ = self._ray.wait(list(self._running), timeout=_POLL_S)
        run, actor = self._running.pop(ready[0])
        try:
            content = self._ray.get(ready[0])
        except self._ray.exceptions.RayActorError as error:
            self.observe(
                schedule.Note(f"A node was lost with {run.cell.id} run {run.run}: {first_line(error)}.")
            )
            if not self.slots:
                raise InfrastructureError(
                    "the last node of the cluster was lost; what was finished is kept, and the same command "
                    "resumes"
                ) from None
            return Ended(run, None)
        except self._ray.exceptions.RayTaskError as error:
            raise _its_own(error) from None
        self._free.append(actor)
        return Ended(run, received(run, content))

    def _actors(self, *, on_gpu: bool) -> list[tuple[str, Any]]:
        """Return an actor for each GPU or node, with the node's address; Ray shows each its own GPU only."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        site, kind, found = Site.of(self.options).model_dump_json(), self._ray.remote(Node), []
        for node in self._ray.nodes():
            count = int(node["Resources"].get("GPU", 0)) if on_gpu else 1
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            for _ in range(count if node["Alive"] else 0):
                made = kind.options(scheduling_strategy=there, num_cpus=0, num_gpus=int(on_gpu))
                found.append((node["NodeManagerAddress"], made.remote(site)))
        if not found:
            raise InfrastructureError(
                f"the cluster {self.address} has no {'GPU' if on_gpu else 'node'}; see ray status"
            )
        return found

    def _look(self, name: str, asked: Any) -> Look | None:
        import msgspec

        try:
            with interrupts.waiting():
                return msgspec.json.decode(self._ray.get(asked), type=Look)
        except self._ray.exceptions.RayTaskError as error:
            why = _its_own(error)
        except self._ray.exceptions.RayActorError as error:
            why = error
        self.observe(schedule.Note(f"Node {name} is left out: {first_line(why)}."))
        return None


def of_cell(plan: Plan | None, cell: Cell) -> str | None:
    """Return the part of a plan that is about a cell, as JSON."""
    if plan is None:
        return None
    cells = tuple(one for one in plan.cells if one.cell.id == cell.id)
    return plan.model_copy(update={"cells": cells}).model_dump_json()


def _its_own(error: Any) -> Exception:
    """Return what was raised on a node: our own sentence, or what went wrong there."""
    cause = error.cause
    return cause if isinstance(cause, BenchError) else InfrastructureError(f"on a node: {first_line(cause)}")


def _connected(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of anything
    try:
        import ray
    except ImportError:
        raise UsageError(not_installed("--executor ray", "ray", "--executor local")) from None
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
        ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise InfrastructureError(
            f"no Ray cluster answers at {address} ({first_line(error)}); begin one with ray start --head, or "
            "give --address"
        ) from error
    return ray
