"""Runs on the nodes of a Ray cluster: one at a time on each node, or on each GPU."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bench.errors import BenchError, InfrastructureError, UsageError, first_line, not_installed
from bench.records.predictions import Plan
from bench.runner import schedule
from bench.runner.executors import Ended, Machine
from bench.runner.executors.node import Node, Site, of_cell, received
from bench.runner.schedule import Observe, ScheduledRun, SweepOptions
from bench.scenario.cell import Cell
from bench.workers import interrupts

_POLL_S = 1.0
_ANSWER_S = 10.0
_LOOK_S = 900.0
"""For all nodes to look at themselves: importing the libraries from a slow disk takes minutes."""
_FETCH_S = 60.0
_NODES_S = 10.0
_GONE_S = 30.0
"""How long after a node is gone Ray may take to say so of a run on it."""
_BESIDE_S = 7200.0
"""For what an actor does besides its cell, whose own limit is kept there: fetch weights, wait for a GPU."""


class _Slot(NamedTuple):
    """An actor, which runs one cell at a time, and its node."""

    actor: Any
    node: str


class _Begun(NamedTuple):
    """A run that an actor has begun."""

    run: ScheduledRun
    slot: _Slot
    at_s: float


@dataclass(kw_only=True)
class RayExecutor:
    """Has an actor for each GPU, or for each node where cells run on the CPU. Raises as ``Executor`` says."""

    options: SweepOptions
    observe: Observe
    address: str = "auto"
    _free: list[_Slot] = field(default_factory=list)
    _running: dict[Any, _Begun] = field(default_factory=dict)
    _gone: dict[str, float] = field(default_factory=dict)
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
        until_s = time.monotonic() + _LOOK_S
        answers = [slot.actor.look.remote(cells) for _, slot in actors]
        looks = [self._look(name, one, until_s) for (name, _), one in zip(actors, answers, strict=True)]
        first = next((look for look in looks if look), None)
        if first is None:
            raise InfrastructureError(
                f"no node of the cluster {self.address} can run anything; see the notes"
            )
        for (name, slot), look in zip(actors, looks, strict=True):
            if look and not (why := first.unlike(look)):
                self._free.append(slot)
                continue
            self._ray.kill(slot.actor)
            if look:
                self.observe(
                    schedule.Note(f"Node {name} is left out: {why}; give such nodes a sweep of their own.")
                )
        return first

    @contextlib.contextmanager
    def serving(self, machine: Machine, plan: Plan | None, *, on_gpu: bool) -> Iterator[None]:
        """Leave the cluster on the way out; what runs is ended with its actor."""
        del machine, on_gpu  # each node holds its GPU itself
        self._plan = plan
        try:
            yield
        finally:
            for slot in [*self._free, *(begun.slot for begun in self._running.values())]:
                self._ray.kill(slot.actor)
            self._ray.shutdown()

    def start(self, run: ScheduledRun) -> None:
        slot = self._free.pop(0)
        self.observe(schedule.RunStarted(run.cell, run.run))
        reference = slot.actor.run.remote(run.cell, run.run, of_cell(self._plan, run.cell))
        self._running[reference] = _Begun(run, slot, time.monotonic())

    def next_end(self) -> Ended:
        """Wait for one, but never for a node that is gone. Raises ``InfrastructureError`` when none is left.

        A record is large enough to stay in its node's memory until it is asked for, and Ray waits ten minutes
        for one whose node was lost meanwhile; so that is not waited for here, but asked with a limit.
        """
        with interrupts.waiting():
            reference, why = self._waited()
        return self._lost(reference, why) if why else self._received(reference)

    def _waited(self) -> tuple[Any, str | None]:
        """Return what is ready, or else what is lost and why."""
        looked_s = time.monotonic()
        while True:
            ready, _ = self._ray.wait(list(self._running), timeout=_POLL_S, fetch_local=False)
            if ready:
                return ready[0], None
            if (now_s := time.monotonic()) - looked_s > _NODES_S:
                looked_s = now_s
                self._look_for_nodes(now_s)
            for reference, begun in self._running.items():
                if why := self._why_lost(begun, now_s):
                    return reference, why

    def _received(self, reference: Any) -> Ended:
        run, slot, _ = self._running[reference]
        errors = self._ray.exceptions
        try:
            record = self._ray.get(reference, timeout=_FETCH_S)
        except errors.RayTaskError as error:
            raise _its_own(error) from None
        except errors.RayError as error:  # the actor, its node, or the record with it
            return self._lost(reference, first_line(error))
        del self._running[reference]
        self._free.append(slot)
        return Ended(run, received(run, record))

    def _look_for_nodes(self, now_s: float) -> None:
        """Note which nodes are gone, and since when; none of their actors is given a run."""
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        named = {slot.node for slot in (*self._free, *(begun.slot for begun in self._running.values()))}
        self._gone = {name: self._gone.get(name, now_s) for name in named - alive}
        self._free = [slot for slot in self._free if slot.node in alive]

    def _why_lost(self, begun: _Begun, now_s: float) -> str | None:
        limit_s = begun.run.cell.limits.timeout_s + _BESIDE_S
        if now_s - self._gone.get(begun.slot.node, now_s) > _GONE_S:
            return "its node has left the cluster"
        if now_s - begun.at_s > limit_s:
            return f"nothing came from its node within {limit_s:g} s"
        return None

    def _lost(self, reference: Any, why: str) -> Ended:
        """End the actor of a run that is lost, so that it is never done twice at once."""
        run, slot, _ = self._running.pop(reference)
        self.observe(schedule.Note(f"A node was lost with {run.cell.id} run {run.run}: {why.rstrip('.')}."))
        self._ray.kill(slot.actor)
        self._look_for_nodes(time.monotonic())
        if not self.slots:
            raise InfrastructureError(
                "the last node of the cluster was lost; what was finished is kept, and the same command "
                "resumes"
            )
        return Ended(run, None)

    def _actors(self, *, on_gpu: bool) -> list[tuple[str, _Slot]]:
        """Return an actor for each GPU or node, with the node's address; Ray shows each its own GPU only."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        site, kind, found = Site.of(self.options), self._ray.remote(Node), []
        for node in self._ray.nodes():
            count = int(node["Resources"].get("GPU", 0)) if on_gpu else 1
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            for _ in range(count if node["Alive"] else 0):
                made = kind.options(scheduling_strategy=there, num_cpus=0, num_gpus=int(on_gpu))
                found.append((node["NodeManagerAddress"], _Slot(made.remote(site), node["NodeID"])))
        if not found:
            raise InfrastructureError(
                f"the cluster {self.address} has no {'GPU' if on_gpu else 'node'}; see ray status"
            )
        return found

    def _look(self, name: str, asked: Any, until_s: float) -> Machine | None:
        """Return what a node says of itself; None, and a note, where it does not in time or cannot."""
        try:
            with interrupts.waiting():
                found: Machine = self._ray.get(asked, timeout=max(0.0, until_s - time.monotonic()))
                return found
        except self._ray.exceptions.RayTaskError as error:
            why = first_line(_its_own(error))
        except self._ray.exceptions.GetTimeoutError:
            why = f"no answer within {_LOOK_S:g} s; its GPU may be in use by another job, see ray status"
        except self._ray.exceptions.RayError as error:
            why = first_line(error)
        self.observe(schedule.Note(f"Node {name} is left out: {why.rstrip('.')}."))
        return None


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
