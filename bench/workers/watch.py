"""Whoever looks at the machine while a worker works: told what the worker says, asked at the end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bench.records.gpu import GpuReading
from bench.records.messages import Message
from bench.records.records import Caveat

Hear = Callable[[Message], None]
"""Is told what a worker says, as it says it. Must return soon: the supervisor waits for it."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was seen; ``contamination`` is the sentence why this run says nothing, None where it does."""

    gpu: GpuReading | None = None
    caveats: tuple[Caveat, ...] = ()
    contamination: str | None = None


class Watch(Protocol):
    """Watches one run from outside the worker. Every call returns soon: the supervisor waits for it."""

    def begin(self, worker_pid: int) -> None:
        """Say that the worker is there."""

    def message(self, message: Message) -> None:
        """Pass on what it says."""

    def finish(self) -> Findings:
        """End watching, however the run went, and tell; nothing is told a second time."""
