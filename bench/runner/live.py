"""What a sweep looks like on a terminal (one live table) and in a log (plain lines).

Redraws only when a worker says something, so that watching does not disturb what is measured.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import SegmentLines
from rich.table import Table
from rich.text import Text

from bench.errors import counted
from bench.metrics import GIB
from bench.records.derived_metrics import TRAINING_PHASES, read_metrics
from bench.records.messages import EvaluationProgress, PhaseStarted, ReadingMade, Said
from bench.records.predictions import Plan
from bench.records.records import NS_PER_SECOND, PhaseReading, Record, StepSample
from bench.runner.doctor import Finding
from bench.runner.schedule import Event, Note, Observe, Preparing, RunEnded, RunStarted, SweepStarted
from bench.scenario.cell import Cell

REDRAW_INTERVAL_S = 0.5
DRAWING_SHARE = 0.001  # of the time between two phases, where a slow terminal makes that the longer interval
LOGGED_PROGRESS_INTERVAL_S = 10.0
ROWS_AROUND_TABLE = 8
LOG_WIDTH = 140
LONGEST_ID = 40  # columns; a longer one is folded
RenderPlan = Callable[[Plan], RenderableType]
STYLES = {"ok": "green", "oom": "yellow", "unavailable": "dim", "skipped": "dim"}


def open_console(*, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal, or wide enough for a table in a log."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=LOG_WIDTH)


@contextlib.contextmanager
def watch(console: Console, render_plan: RenderPlan | None = None) -> Iterator[Observe]:
    """Show a sweep meanwhile, in the way that suits where the output goes."""
    if not console.is_terminal:
        yield PlainLines(console, render_plan)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield LiveTable(live, render_plan)


@contextlib.contextmanager
def watch_predicting(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show meanwhile how many cells are predicted: a bar on a terminal, in a log lines.

    A log has one as predicting begins, now and then, and one as it ends.
    """
    logged_s, logged = float("-inf"), -1

    def log(done: int, total: int) -> None:
        nonlocal logged_s, logged
        if (done == total and logged not in {-1, total}) or (
            done < total and time.monotonic() - logged_s >= LOGGED_PROGRESS_INTERVAL_S
        ):
            logged_s, logged = time.monotonic(), done
            console.print(f"predicting: {done} of {total} cells", highlight=False)

    if not console.is_terminal:  # where even a disabled bar of rich 13.9 prints an empty line
        yield log
        return
    columns = TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("predicting", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@dataclass
class CurrentRun:
    """What is known of the run in progress."""

    cell: Cell
    run: int
    started_s: float = field(default_factory=time.monotonic)
    phase: str = "start"
    total_steps: int | None = None
    steps_in_phase: int = 0
    evaluated: str = ""
    told_s: float = field(default_factory=time.monotonic)  # when a log last had a line of it
    tokens_per_second: float | None = None
    host_peak_bytes: int | None = None
    cuda_peak_bytes: int | None = None

    def take(self, message: Said) -> None:
        """Follow phase, steps and the peaks of training."""
        reading = message.reading if isinstance(message, ReadingMade) else None
        if isinstance(message, PhaseStarted):
            self.phase, self.total_steps, self.steps_in_phase = message.phase, message.total_steps, 0
            self.evaluated, self.told_s = "", time.monotonic()
        elif isinstance(message, EvaluationProgress):
            self.evaluated = f" {message.task} {message.done:,}/{message.total:,} requests"
        elif isinstance(reading, StepSample) and reading.step_time_ns:
            self.steps_in_phase += 1
            self.tokens_per_second = reading.tokens.non_padding * NS_PER_SECOND / reading.step_time_ns
        elif isinstance(reading, PhaseReading) and reading.name in TRAINING_PHASES:
            host, cuda = reading.host_peak_bytes, reading.cuda_allocated_peak_bytes
            self.host_peak_bytes = max(self.host_peak_bytes or 0, host or 0) or None
            self.cuda_peak_bytes = max(self.cuda_peak_bytes or 0, cuda or 0) or None

    @property
    def doing(self) -> str:
        """The phase, with the step where steps are counted, or the requests of an evaluation."""
        step = f" {self.steps_in_phase}/{self.total_steps}" if self.total_steps else ""
        return f"{self.phase}{step}{self.evaluated}"

    @property
    def line(self) -> str:
        """What it is doing, the last step's speed, the peak, and the time."""
        speed = "" if self.tokens_per_second is None else f"{self.tokens_per_second:,.0f} tokens/s"
        peak = _peak(self.cuda_peak_bytes, self.host_peak_bytes)
        elapsed = _duration(time.monotonic() - self.started_s)
        parts = [part for part in (self.doing, speed, peak, elapsed) if part]
        return f"{self.cell.id} run {self.run}: {', '.join(parts)}"


class _Watcher:
    """The state of a sweep, from its events; ``show`` says what of it is shown."""

    def __init__(self, console: Console, render_plan: RenderPlan | None = None) -> None:
        self._console = console
        self._render_plan = render_plan
        self._current: CurrentRun | None = None
        self._runs_to_do = self._runs_on_disk = 0
        self._expected_s: Sequence[float | None] = ()
        self._ended: list[Record] = []
        self._began_s: float | None = None
        self._running = self._at_once = 0  # runs now, and at most: several on a cluster

    def __call__(self, event: Event) -> None:
        match event:
            case SweepStarted():
                self._runs_to_do, self._runs_on_disk, self._expected_s = event
            case Plan() if self._render_plan is not None:
                self._console.print(self._render_plan(event))
            case RunStarted():
                self._began_s = self._began_s or time.monotonic()
                self._running += 1
                self._at_once = max(self._at_once, self._running)
                self._current = CurrentRun(event.cell, event.run)
            case Said() if self._current is not None:
                self._current.take(event)
            case RunEnded():
                self._runs_to_do += event.again
                self._ended.append(event.record)
                self._running -= 1
                self._current = None
        self.show(event)

    def _left(self) -> str:
        """Say how long the rest may take: each run as before, else as those of this sweep; or nothing.

        Where several run at once, the rest goes on at the pace of those that ended.
        """
        done = len(self._ended)
        if self._at_once > 1 and done and self._began_s is not None:
            left_s = (time.monotonic() - self._began_s) / done * (self._runs_to_do - done)
            return f"about {_duration(left_s)} left" if left_s else ""
        took_s = [record.total_ns / NS_PER_SECOND for record in self._ended if record.total_ns]
        usual_s = statistics.fmean(took_s) if took_s else None
        ahead = [*self._expected_s[done:], *[None] * self._runs_to_do][: self._runs_to_do - done]
        each_s = [usual_s if before_s is None else before_s for before_s in ahead]
        known_s = [one_s for one_s in each_s if one_s is not None]
        if not known_s or len(known_s) < len(each_s):
            return ""
        running_s = time.monotonic() - self._current.started_s if self._current else 0.0
        return f"about {_duration(max(0.0, sum(known_s) - running_s))} left"

    def show(self, event: Event) -> None:
        raise NotImplementedError


class LiveTable(_Watcher):
    """Finished runs, the current one and an estimate of the end, redrawn in place.

    The finished ones are laid out once: forty of them take rich as long as a hundred samples of a GPU.
    """

    def __init__(self, live: Live, render_plan: RenderPlan | None = None) -> None:
        """Draw into a started ``Live``; show what is predicted where it is said how."""
        super().__init__(live.console, render_plan)
        self._live = live
        self._preparing = ""
        self._laid_out = self._lay_out()
        self._next_draw_s = float("-inf")

    def show(self, event: Event) -> None:
        """Redraw where something is new; for what a worker says, only now and then."""
        match event:
            case Note():
                self._console.print(Text(printable(event.text), style="yellow"))
                return
            case Preparing():
                self._preparing = event.what
            case SweepStarted() | RunStarted():
                self._preparing = ""
            case RunEnded():
                self._laid_out = self._lay_out()
            case Said() if self._current is not None:
                if not isinstance(event, PhaseStarted) and time.monotonic() < self._next_draw_s:
                    return
            case _:
                return
        self._draw()

    def _draw(self) -> None:
        began_s = time.monotonic()
        current = [Text(self._current.line, style="bold")] if self._current else []
        shown = Group(self._laid_out, *current, Text(self._caption(), style="table.caption"))
        self._live.update(shown, refresh=True)
        now_s = time.monotonic()
        self._next_draw_s = now_s + max(REDRAW_INTERVAL_S, (now_s - began_s) / DRAWING_SHARE)

    def _lay_out(self) -> RenderableType:
        room = max(1, self._console.height - ROWS_AROUND_TABLE)
        table = _table([_record_row(record) for record in self._ended[-room:]], "state")
        return SegmentLines(self._console.render_lines(table, pad=False), new_lines=True)

    def _caption(self) -> str:
        if self._preparing:
            return f"{self._preparing} …"
        parts = [f"{len(self._ended)} of {counted(self._runs_to_do, 'run')}"]
        if self._runs_on_disk:
            parts.append(f"{self._runs_on_disk} on disk before")
        return ", ".join(filter(None, [*parts, self._left()]))


class PlainLines(_Watcher):
    """One line as a phase begins and one as a run ends, for a console that is not a terminal.

    An evaluation of minutes has others in between.
    """

    def show(self, event: Event) -> None:
        match event:
            case Note():
                self._print(f"note: {event.text}")
            case Preparing():
                self._print(f"{event.what} …")
            case SweepStarted():
                parts = [f"{counted(event.runs_to_do, 'run')} to do", f"{event.runs_on_disk} on disk already"]
                self._print(", ".join(filter(None, [*parts, self._left()])))
            case PhaseStarted(phase=phase) if self._current is not None:
                self._print(f"{self._current.cell.id} run {self._current.run}: {phase}")
            case EvaluationProgress() if self._current is not None:
                now_s = time.monotonic()
                if not event.done or now_s - self._current.told_s >= LOGGED_PROGRESS_INTERVAL_S:
                    self._current.told_s = now_s
                    self._print(f"{self._current.cell.id} run {self._current.run}: {self._current.doing}")
            case RunEnded(record):
                parts = [part for part in map(str, _record_row(record)[2:]) if part]
                left = f" ({self._left()})" if self._left() else ""
                why = f": {record.failure.message}" if record.failure else ""
                self._print(
                    f"[{len(self._ended)}/{self._runs_to_do}] {record.cell.id} run {record.run}: "
                    f"{', '.join(parts)}{why}{left}"
                )

    def _print(self, text: str) -> None:
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def outcome_table(records: Sequence[Record]) -> Table:
    """Return every run with its outcome and, where it is not ok, the reason."""
    reasons = [Text(printable(record.failure.message)) if record.failure else "" for record in records]
    rows = [(*_record_row(record), why) for record, why in zip(records, reasons, strict=True)]
    table = _table(rows, "outcome", "why")
    table.title, table.title_justify = "Outcomes", "left"
    return table


def _table(rows: Iterable[Sequence[str | Text]], state: str, *more: str) -> Table:
    table, rows = Table(), list(rows)
    table.add_column(
        "cell", overflow="fold", min_width=min(max((len(row[0]) for row in rows), default=0), LONGEST_ID)
    )
    for name in ("run", state, "tokens/s", "peak", "time", *more):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def finding_lines(findings: Sequence[Finding]) -> Text:
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        mark = Text("ok", style="green") if finding.good else Text("no", style="yellow")
        lines.append(Text.assemble(mark, f"  {finding.subject:<{width}}  {printable(finding.text)}"))
    return Text("\n").join(lines)


def _record_row(record: Record) -> tuple[str, str, Text, str, str, str]:
    """Return cell, run, outcome, tokens/s, peak and time of a finished run."""
    metrics = read_metrics(record)
    speed = metrics["tokens_per_second"]
    return (
        record.cell.id,
        str(record.run),
        Text(record.outcome, style=STYLES.get(record.outcome, "red")),
        "" if speed is None else f"{speed:,.0f}",
        _peak(metrics["cuda_allocated_peak_bytes"], metrics["host_peak_bytes"]),
        _duration(record.total_ns / NS_PER_SECOND),
    )


def _peak(cuda_bytes: float | None, host_bytes: float | None) -> str:
    """Return the peak with what it is of: tensors on the device where there is one, else the process."""
    if cuda_bytes is not None:
        return f"{cuda_bytes / GIB:.2f} GiB tensors"
    return "" if host_bytes is None else f"{host_bytes / GIB:.2f} GiB process"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def printable(text: str) -> str:
    """Return the text without control characters, which a worker's message could carry."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)
