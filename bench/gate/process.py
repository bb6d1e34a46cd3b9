"""The process of one side as its gate sees it: opened once, given one run at a time, ended on every path.

What it reports is seen from here too, by this process's clock and by the memory that its workers hold.
"""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

import bench
from bench.errors import InfrastructureError, UsageError
from bench.gate import JUDGE_VARIABLE, PROJECT_VARIABLE
from bench.gate.judge import PACKAGE
from bench.gate.protocol import (
    ANSWER,
    PROTOCOL_VERSION,
    Assignment,
    Broken,
    Greeting,
    Made,
    Note,
    Opening,
    PlanAssignment,
    Ready,
)
from bench.gate.sides import Side
from bench.io import kernel_text
from bench.records.messages import ALONE, StepTurns
from bench.records.readings import Stored
from bench.records.records import SCHEMA_VERSION
from bench.records.sessions import SideName
from bench.scenario.cell import Cell
from bench.workers import interrupts
from bench.workers.launch import printed_last

MAX_ANSWER_BYTES = 64 * 1024**2


SERVE: Final = ("-m", "bench.gate.serve")
OPENING_TIMEOUT_S = 900.0  # imports of all libraries from a cold network disk
BEYOND_LIMITS_S = 7200.0  # fetching weights comes before a cell's own limit, with one of its own
END_GRACE_S = 10.0
LOOK_S = 0.5  # between two looks at the memory of workers
_READ_BYTES = 1 << 16

_Kind = TypeVar("_Kind", bound=Stored)


class SideProcess:
    """A side that has been opened. It works only when it was sent something; between runs it sleeps."""

    def __init__(
        self, side: Side, note: Callable[[str], None], command: Sequence[str] = SERVE, project: str = ""
    ) -> None:
        """Start the process; ``open_sides`` is how it is used. ``project`` are its packages, with commas."""
        self.side = side
        self.seen_peak_bytes: int | None = None
        self._note = note
        self._unread = b""
        self._log = os.memfd_create(f"{side.name} of a gate")
        lifeline, self._lifeline = os.pipe()
        self.answers, answers = os.pipe()
        try:
            self._process = subprocess.Popen(
                [str(side.python), *command, str(answers), str(lifeline)],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(answers, lifeline),
                env={**side.variables, PROJECT_VARIABLE: project, JUDGE_VARIABLE: str(side.judge / "bench")},
                start_new_session=True,
            )
        except OSError as error:
            raise UsageError(
                f"the {side.name} cannot be started: {side.python.name} of {side.facts.understood} does not "
                f"run ({error.strerror}); check the path"
            ) from error
        finally:
            os.close(answers)
            os.close(lifeline)

    def run(self, cell: Cell, number: int) -> Made:
        """Run a cell once. Raises ``InfrastructureError`` when the side breaks down."""
        self.begin(cell, number)
        return self.expect(Made, cell.limits.timeout_s + BEYOND_LIMITS_S)

    def begin(self, cell: Cell, number: int, turns: StepTurns | None = None) -> None:
        """Have a cell run once; does not wait for it."""
        self.seen_peak_bytes = None
        self.send(Assignment(cell_json=cell.model_dump_json(), run=number, turns=turns))

    def send(self, line: Opening | Assignment | PlanAssignment) -> None:
        """Say something to the side. One that is gone says why as its answer is waited for."""
        assert self._process.stdin is not None  # noqa: S101 - for the type checker; it was asked for
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.model_dump_json().encode() + b"\n")
            self._process.stdin.flush()

    def expect(self, kind: type[_Kind], timeout_s: float = OPENING_TIMEOUT_S) -> _Kind:
        """Return the side's next answer but notes, as ``answers_of`` yields it."""
        return next(answer for _, answer in answers_of(kind, [self], timeout_s))

    def look(self) -> None:
        """Keep the most resident memory that any process of a run has had, as the kernel counts it.

        The server that workers are forked from has its peak of importing for ever, which is no run's.
        """
        for pid in _below(self._process.pid) - _fork_servers(self._process.pid):
            with contextlib.suppress(OSError, IndexError):  # it is gone, or has ended and has no memory
                status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
                peak_bytes = int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024
                self.seen_peak_bytes = max(self.seen_peak_bytes or 0, peak_bytes)

    def take(self, kind: type[_Kind]) -> _Kind | None:
        """Read what the side has said, pass notes on, and return the answer if all of it has come.

        Raises ``InfrastructureError`` for another answer, or where it is gone.
        """
        content = os.read(self.answers, _READ_BYTES)
        if not content:
            raise self._gone()
        self._unread += content
        if len(self._unread) > MAX_ANSWER_BYTES:
            raise self._garbled(f"a line of more than {MAX_ANSWER_BYTES:,} bytes")
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            try:
                answered = ANSWER.validate_json(line)
            except ValidationError as error:
                mistake = error.errors(include_url=False, include_input=False)[0]
                raise self._garbled(f"{'.'.join(map(str, mistake['loc']))}: {mistake['msg']}") from None
            match answered:
                case Note(text=text):
                    self._note(f"{self.side.name}: {text}")
                case Broken(message=message):
                    raise InfrastructureError(f"the {self.side.name} cannot go on: {message}")
                case answer if isinstance(answer, kind):
                    return answer  # the last line: nothing is said after it without being asked
                case answer:
                    raise self._garbled(f"a {answer.type} where a {kind.__name__.lower()} was due")
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
        for descriptor in (self.answers, self._lifeline, self._log):
            os.close(descriptor)

    def _garbled(self, what: str) -> InfrastructureError:
        return InfrastructureError(
            f"the {self.side.name} answered what cannot be understood ({what}); its finetune-bench "
            "differs too much from this one, so choose a revision or environment whose is closer"
        )

    def _gone(self) -> UsageError | InfrastructureError:
        """Say why the process is gone, from how it ended and what it printed last."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_GRACE_S)
        said = printed_last(self._log)
        side = f"the {self.side.name} ({self.side.facts.understood})"
        missing = re.search(r"No module named '?(\w+)'?\)?$", said)
        if missing:
            return UsageError(
                f"{side} has no {missing[1]}, which bench needs there to measure; install it there, or all "
                "that bench needs, with pip install finetune-bench"
            )
        if re.search(r"No module named '?bench\.", said):
            return UsageError(
                f"{side} has a finetune-bench that is too old to be gated, or a package called bench of "
                "its own; choose a later revision"
            )
        code = self._process.returncode
        signalled = code is not None and code < 0
        how = f"by {signal.Signals(-code).name}" if signalled else f"with exit code {code}"
        last = said.rpartition("\n")[2]
        return InfrastructureError(
            f"{side} ended {how}{f' ({last})' if last else ''}; what was finished is on disk, and nothing is "
            "judged by it"
        )


def _below(pid: int) -> set[int]:
    """Return the processes that a process has started, and those that these have."""
    own = _children(pid)
    return own.union(*map(_below, own))


def _children(pid: int) -> set[int]:
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.update(map(int, children.read_text(encoding="ascii").split()))
    return found


def _fork_servers(pid: int) -> set[int]:
    """Return those that a side itself has started; what they fork has their command line too."""
    commands = {child: kernel_text(Path(f"/proc/{child}/cmdline")) or "" for child in _children(pid)}
    return {child for child, command in commands.items() if "multiprocessing.forkserver" in command}


def answers_of(
    kind: type[_Kind], processes: Sequence[SideProcess], timeout_s: float
) -> Iterator[tuple[SideProcess, _Kind]]:
    """Sleep until the sides answer, and yield each with its answer as it comes.

    Raises ``InfrastructureError`` where one answers something else, or none does in time.
    """
    deadline_s = time.monotonic() + timeout_s
    waiting = list(processes)
    while waiting:
        with interrupts.waiting():
            left_s = max(0.0, deadline_s - time.monotonic())
            ready = wait([each.answers for each in waiting], min(left_s, LOOK_S) if kind is Made else left_s)
        for process in waiting if kind is Made else ():
            process.look()
        if not ready and time.monotonic() < deadline_s:
            continue
        if not ready:
            names = " and the ".join(each.side.name for each in waiting)
            raise InfrastructureError(
                f"the {names} {'does' if len(waiting) == 1 else 'do'} not answer any more; look at what its "
                "process does, then run the same command again"
            )
        for process in [each for each in waiting if each.answers in ready]:
            if (answer := process.take(kind)) is not None:
                waiting.remove(process)
                yield process, answer


def run_together(
    processes: Sequence[SideProcess], cell: Cell, numbers: Mapping[SideName, int]
) -> dict[SideName, Made]:
    """Run a cell once on each of two sides, the first of which begins, taking turns at steps.

    ``numbers`` are those of the runs. A side whose run is over, however it went, leaves the rest to the
    other. Raises ``InfrastructureError`` when a side breaks down, or no pipes can be made.
    """
    records: dict[SideName, Made] = {}
    with _pipes() as pipes:
        own = dict(zip(processes, pipes, strict=True))
        other = dict(zip(processes, reversed(pipes), strict=True))
        for process in processes:
            path, first = own[process][0], process is processes[0]
            turns = StepTurns(own_pipe=path, other_pipe=other[process][0], first=first)
            process.begin(cell, numbers[process.side.name], turns)
        for process, made in answers_of(Made, processes, 2 * cell.limits.timeout_s + BEYOND_LIMITS_S):
            records[process.side.name] = made
            os.write(other[process][1], ALONE)
    return records


@contextlib.contextmanager
def _pipes() -> Iterator[tuple[tuple[str, int], tuple[str, int]]]:
    """Give path and descriptor of two named pipes that only this user can open.

    Opened here for both reading and writing, so that no worker waits for the other to open its end (fifo(7)).
    """

    def pipe(path: Path) -> tuple[str, int]:
        os.mkfifo(path, mode=0o600)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        return str(path), descriptor

    with contextlib.ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-turns-")))
            made = pipe(folder / "first"), pipe(folder / "second")
        except OSError as error:
            raise InfrastructureError(
                f"no named pipes could be made in {tempfile.gettempdir()} for the sides to take turns by "
                f"({error.strerror}); set TMPDIR to a local folder with room"
            ) from error
        yield made


@contextlib.contextmanager
def open_sides(
    sides: Sequence[Side], note: Callable[[str], None], allowed: Opening, command: Sequence[str] = SERVE
) -> Iterator[tuple[tuple[SideProcess, Ready], ...]]:
    """Start the sides, wait until both are ready, and end them afterwards, however that comes.

    ``allowed`` is what both may do. Raises ``UsageError`` where a side has no suite that can be talked to,
    ``InfrastructureError`` where it breaks down.
    """
    located = tuple(sorted({package for side in sides for package in side.under_test}))
    environments = any(side.facts.kind == "python" for side in sides)
    with contextlib.ExitStack() as stack:
        processes = []
        for side in sides:
            processes.append(SideProcess(side, note, command, ",".join(located)))
            stack.callback(processes[-1].end)
        # Nothing is measured yet, so they may get ready side by side.
        for process, side in zip(processes, sides, strict=True):
            _require_same_versions(side, process.expect(Greeting))
            own: dict[str, Any] = {"located": ("bench", *located), "code_folder": side.code}
            if side.judge == PACKAGE.parent:
                own |= {"judge": bench.__version__, "installed": environments}
            else:
                own |= {"evaluates": False}
            if side.label:
                own |= {"stamped": side.under_test, "label": side.label}
            process.send(allowed.model_copy(update=own))
        yield tuple((process, process.expect(Ready)) for process in processes)


def _require_same_versions(side: Side, greeting: Greeting) -> None:
    """Raise ``UsageError`` where a side's suite speaks or writes otherwise than this one."""
    records = greeting.record_schema, SCHEMA_VERSION
    versions = {"protocol": (greeting.protocol, PROTOCOL_VERSION), "records": records}
    pairs = [(name, its, ours) for name, (its, ours) in versions.items() if its != ours]
    different = [f"{name} of version {its} instead of {ours}" for name, its, ours in pairs]
    if different:
        raise UsageError(
            f"the {side.name} ({side.facts.understood}) has a finetune-bench that writes "
            f"{' and '.join(different)}, so the two cannot be compared; choose a revision or environment "
            "whose finetune-bench is closer to this one"
        )
