"""What a worker has said so far: its messages put together into a measurement, however far it came."""

import time
from collections.abc import Sequence

from pydantic import ValidationError

from bench.records.cuda import AllocatorSnapshot, PagedMemory, TorchSettings
from bench.records.messages import MESSAGE, Failed, Finished, Message, PhaseStarted, ReadingMade
from bench.records.records import (
    Caveat,
    DeviceFacts,
    EvaluationReading,
    FlopsReading,
    LedgerReading,
    Measurement,
    MergeCheck,
    ModelFacts,
    Phase,
    PhaseReading,
    StepSample,
    Stored,
)
from bench.workers.watch import Hear

MAX_MESSAGE_BYTES = 64 * 1024**2
_SINGLE: dict[type[Stored], str] = {
    DeviceFacts: "device",
    TorchSettings: "torch_settings",
    PagedMemory: "paged",
    AllocatorSnapshot: "snapshot",
    ModelFacts: "model",
    LedgerReading: "ledger",
    FlopsReading: "flops",
    MergeCheck: "merge",
}
"""Readings that a measurement has at most one of, by the field it stands in."""


class Transcript:
    """Takes the bytes of the message pipe, one JSON object a line, and keeps every reading at once."""

    def __init__(self, asked_ns: int, hear: Sequence[Hear] = ()) -> None:
        """Start when the worker was asked for, on the clock of ``time.monotonic_ns``; pass on to ``hear``."""
        self.phase: Phase | None = None
        self.result: Finished | Failed | None = None
        self.malformed: str | None = None
        self._asked_ns = asked_ns
        self._hear = hear
        self._unfinished_line = bytearray()
        self._single: dict[str, Stored] = {}
        self._phases: list[PhaseReading] = []
        self._steps: list[StepSample] = []
        self._evaluations: list[EvaluationReading] = []
        self._caveats: list[Caveat] = []

    def feed(self, content: bytes) -> bool:
        """Take some bytes; False, with the reason in ``malformed``, when they are not the protocol's."""
        *lines, rest = content.split(b"\n")
        for line in lines:
            whole = bytes(self._unfinished_line) + line
            self._unfinished_line.clear()
            if self.result is None and not self._take(whole):
                return False
        self._unfinished_line += rest
        if len(self._unfinished_line) > MAX_MESSAGE_BYTES:
            self.malformed = f"it is longer than {MAX_MESSAGE_BYTES} bytes."
            return False
        return True

    def measurement(self) -> Measurement:
        """Return everything read so far."""
        return Measurement.model_validate(
            {
                **self._single,
                "phases": tuple(self._phases),
                "steps": tuple(self._steps),
                "evaluations": tuple(self._evaluations),
                "caveats": tuple(self._caveats),
            }
        )

    def _take(self, line: bytes) -> bool:
        try:
            message = MESSAGE.validate_json(line)
        except ValidationError:
            self.malformed = f"it begins with {line[:80].decode(errors='replace')!r}."
            return False
        self._note(message)
        for hear in self._hear:
            hear(message)
        return True

    def _note(self, message: Message) -> None:
        if isinstance(message, PhaseStarted):
            if self.phase is None:
                self._note_start()
            self.phase = message.phase
        elif isinstance(message, ReadingMade):
            self._keep(message)
        elif isinstance(message, Finished | Failed):
            self.result = message

    def _note_start(self) -> None:
        """Add the phase only the supervisor can time: from asking for the worker to its first phase."""
        duration_ns = time.monotonic_ns() - self._asked_ns
        self._phases.append(PhaseReading(name="start", duration_ns=duration_ns))

    def _keep(self, message: ReadingMade) -> None:
        match message.reading:
            case PhaseReading() as reading:
                self._phases.append(reading)
            case StepSample() as reading:
                self._steps.append(reading)
            case EvaluationReading() as reading:
                self._evaluations.append(reading)
            case Caveat() as reading:
                self._caveats.append(reading)
            case reading:
                self._single[_SINGLE[type(reading)]] = reading
