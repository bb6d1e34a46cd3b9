"""The process of one side as its gate sees it, and what the two say to each other.

Opened once, given one run at a time, ended on every path. They exchange one JSON object a line, each way on a
pipe of its own. History (``PROTOCOL_VERSION``):
- 2 (2026-11-22): an assignment can be run step by step in turn with the other side's.
- 1 (2026-11-22): first.
"""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Annotated, Final, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from bench.errors import InfrastructureError, UsageError
from bench.gate.sides import Side
from bench.records.messages import StepTurns
from bench.records.readings import Positive, Stored
from bench.records.records import SCHEMA_VERSION, Environment, Record
from bench.scenario.cell import Cell
from bench.workers import interrupts

PROTOCOL_VERSION: Final = 2
MAX_ANSWER_BYTES = 64 * 1024**2


class Opening(Stored):
    """The first line: what the side needs to know once.

    ``stamped`` are packages that this side imports from sources, whose version is then ``VERSION+label``;
    ``located`` are those of either side, whose place is wanted.
    """

    trust_remote_code: bool = False
    stamped: tuple[str, ...] = ()
    label: str = ""
    located: tuple[str, ...] = ()


class Assignment(Stored):
    """Run a cell once, as its run number so and so; alone, or in turn with the other side."""

    cell_json: str
    run: Positive
    turns: StepTurns | None = None


class Greeting(Stored):
    """Who answers; sent before anything heavy is imported, so it is read by every later version."""

    type: Literal["greeting"] = "greeting"
    protocol: int
    record_schema: int
    python: str


class Ready(Stored):
    """The libraries are imported, and a worker has looked at the machine."""

    type: Literal["ready"] = "ready"
    environment: Environment
    cuda_name: str | None = None
    locations: dict[str, str | None] = Field(description="By package; None where it is not found.")


class Note(Stored):
    """Something the user has to know, in one sentence."""

    type: Literal["note"] = "note"
    text: str


class Made(Stored):
    """An assignment is done."""

    type: Literal["made"] = "made"
    record: Record


class Broken(Stored):
    """The side cannot go on; it ends after this."""

    type: Literal["broken"] = "broken"
    message: str


Answer = Annotated[Greeting | Ready | Note | Made | Broken, Field(discriminator="type")]
ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)


SERVE: tuple[str, ...] = ("-m", "bench.gate.serve")
OPENING_TIMEOUT_S = 900.0  # imports of all libraries from a cold network disk
BEYOND_LIMITS_S = 7200.0  # fetching weights comes before a cell's own limit, with one of its own
END_GRACE_S = 10.0
_TAIL_BYTES = 8192
_READ_BYTES = 1 << 16

_Kind = TypeVar("_Kind", bound=Stored)


class SideProcess:
    """A side that has been opened. Only ``run`` makes it work; between runs it sleeps."""

    def __init__(self, side: Side, note: Callable[[str], None], command: Sequence[str] = SERVE) -> None:
        """Start the process; ``open_side`` is how it is used."""
        self.side = side
        self._note = note
        self._unread = bytearray()
        self._log = os.memfd_create(f"{side.name} of a gate")
        lifeline, self._lifeline = os.pipe()
        self._answers, answers = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - no shell; the interpreter is the user's choice
                [str(side.python), *command, str(answers), str(lifeline)],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(answers, lifeline),
                env=dict(side.variables),
                start_new_session=True,
            )
        except OSError as error:
            raise UsageError(
                f"the {side.name} cannot be started: {side.python.name} of {side.facts.understood} does not "
                "run "
                f"({error.strerror}); check the path"
            ) from error
        finally:
            os.close(answers)
            os.close(lifeline)

    def greet(self) -> Greeting:
        """Wait until the interpreter has come up with this suite, of a version that can be talked to."""
        greeting = self._expect(Greeting, time.monotonic() + OPENING_TIMEOUT_S)
        mine = {"protocol": PROTOCOL_VERSION, "records": SCHEMA_VERSION}
        its = {"protocol": greeting.protocol, "records": greeting.record_schema}
        different = [
            f"{name} of version {its[name]} instead of {mine[name]}"
            for name in mine
            if its[name] != mine[name]
        ]
        if different:
            raise UsageError(
                f"the {self.side.name} ({self.side.facts.understood}) has a finetune-bench that writes "
                f"{' and '.join(different)}, so the two cannot be compared; choose a revision or environment "
                "whose finetune-bench is closer to this one"
            )
        return greeting

    def ask_to_get_ready(self, opening: Opening) -> None:
        """Have the libraries imported and the machine looked at; does not wait for it."""
        self._send(opening)

    def ready(self) -> Ready:
        """Wait until that is done."""
        return self._expect(Ready, time.monotonic() + OPENING_TIMEOUT_S)

    def run(self, cell: Cell, number: int) -> Record:
        """Run a cell once and return its record. Raises ``InfrastructureError`` when the side breaks down."""
        self.begin(cell, number)
        return self._expect(Made, time.monotonic() + cell.limits.timeout_s + BEYOND_LIMITS_S).record

    def begin(self, cell: Cell, number: int, turns: StepTurns | None = None) -> None:
        """Have a cell run once; does not wait for it."""
        self._send(Assignment(cell_json=cell.model_dump_json(), run=number, turns=turns))

    @property
    def answers(self) -> int:
        """The descriptor that becomes readable as the side answers."""
        return self._answers

    def made(self) -> Record | None:
        """Return the record of the run that was begun, if its end is in what the side has answered."""
        self._read()
        while b"\n" in self._unread:
            if (made := self._taken(Made)) is not None:
                return made.record
        return None

    def end(self) -> None:
        """End the process and whatever it has started; nothing of it is left afterwards."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr] # it was asked for
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_GRACE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for descriptor in (self._answers, self._lifeline, self._log):
            os.close(descriptor)

    def _send(self, line: Stored) -> None:
        # A side that is gone says why as its answer is waited for.
        with contextlib.suppress(BrokenPipeError):
            stdin = self._process.stdin
            assert stdin is not None  # noqa: S101 - for the type checker; it was asked for
            stdin.write(line.model_dump_json().encode() + b"\n")
            stdin.flush()

    def _expect(self, kind: type[_Kind], deadline_s: float) -> _Kind:
        """Return the next answer but notes. Raises ``InfrastructureError`` for another, or none."""
        while True:
            while b"\n" not in self._unread:
                wait_for_any([self], deadline_s)
                self._read()
            if (answer := self._taken(kind)) is not None:
                return answer

    def _taken(self, kind: type[_Kind]) -> _Kind | None:
        """Take an answer from what was read; None where it was a note, which is passed on."""
        answer = self._answer()
        if isinstance(answer, kind):
            return answer
        if isinstance(answer, Note):
            self._note(f"{self.side.name}: {answer.text}")
            return None
        if isinstance(answer, Broken):
            raise InfrastructureError(f"the {self.side.name} cannot go on: {answer.message}")
        raise self._garbled(f"a {answer.type} where a {kind.__name__.lower()} was due")

    def _read(self) -> None:
        content = os.read(self._answers, _READ_BYTES)
        if not content:
            raise self._gone()
        self._unread += content
        if len(self._unread) > MAX_ANSWER_BYTES:
            raise self._garbled(f"a line of more than {MAX_ANSWER_BYTES:,} bytes")

    def _answer(self) -> Answer:
        line, _, rest = bytes(self._unread).partition(b"\n")
        self._unread = bytearray(rest)
        try:
            return ANSWER.validate_json(line)
        except ValidationError as error:
            mistake = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, mistake["loc"]))
            raise self._garbled(f"{where}: {mistake['msg']}") from None

    def _garbled(self, what: str) -> InfrastructureError:
        return InfrastructureError(
            f"the {self.side.name} answered what cannot be understood ({what}); its finetune-bench "
            "differs too much from this one, so choose a revision or environment whose is closer"
        )

    def _gone(self) -> UsageError | InfrastructureError:
        """Say why the process is gone, from how it ended and what it printed last."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_GRACE_S)
        said = self._said()
        side = f"the {self.side.name} ({self.side.facts.understood})"
        missing = re.search(r"No module named '?(\w+)'?\)?$", said)
        if missing:
            needs = "" if missing[1] == "bench" else f", which needs {missing[1]}"
            return UsageError(
                f"{side} has no finetune-bench; install it there with pip install finetune-bench{needs}"
            )
        if "No module named 'bench." in said or "No module named bench." in said:
            return UsageError(
                f"{side} has a finetune-bench that is too old to be gated, or a package called bench of "
                "its own; choose a later revision"
            )
        code = self._process.returncode
        how = (
            f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
        )
        last = said.rpartition("\n")[2]
        return InfrastructureError(
            f"{side} ended {how}{f' ({last})' if last else ''}; what was finished is on disk, and nothing is "
            "judged by it"
        )

    def _said(self) -> str:
        size_bytes = os.fstat(self._log).st_size
        said = os.pread(self._log, _TAIL_BYTES, max(0, size_bytes - _TAIL_BYTES))
        return said.decode(errors="replace").strip()


def wait_for_any(processes: Sequence[SideProcess], deadline_s: float) -> list[SideProcess]:
    """Sleep until some answer, and return those. Raises ``InfrastructureError`` where none does in time."""
    with interrupts.waiting():
        ready = wait([each.answers for each in processes], max(0.0, deadline_s - time.monotonic()))
    if not ready:
        names = " and the ".join(each.side.name for each in processes)
        raise InfrastructureError(
            f"the {names} {'does' if len(processes) == 1 else 'do'} not answer any more; look at what its "
            "process does, then run the same command again"
        )
    return [each for each in processes if each.answers in ready]


@contextlib.contextmanager
def open_sides(
    sides: Sequence[Side],
    note: Callable[[str], None],
    *,
    trust_remote_code: bool = False,
    command: Sequence[str] = SERVE,
) -> Iterator[tuple[tuple[SideProcess, Ready], ...]]:
    """Start the sides, wait until both are ready, and end them afterwards, however that comes.

    Raises ``UsageError`` where a side has no suite that can be talked to, ``InfrastructureError`` where it
    breaks down.
    """
    located = tuple(sorted({package for side in sides if side.tree for package in side.tree.packages}))
    with contextlib.ExitStack() as stack:
        processes = []
        for side in sides:
            processes.append(SideProcess(side, note, command))
            stack.callback(processes[-1].end)
        # Nothing is measured yet, so they may get ready side by side.
        for process in processes:
            process.greet()
            tree = process.side.tree
            process.ask_to_get_ready(
                Opening(
                    trust_remote_code=trust_remote_code,
                    stamped=tree.packages if tree else (),
                    label=tree.label if tree else "",
                    located=located,
                )
            )
        yield tuple((process, process.ready()) for process in processes)
