"""What a user sees of a sweep: plain lines in a log, a table on a terminal, outcomes at the end."""

import io

from rich.console import Console
from rich.live import Live

from bench.records.messages import Heartbeat, PhaseStarted, ReadingMade
from bench.runner.doctor import Finding
from bench.runner.live import LiveTable, PlainLines, finding_lines, outcome_table, printable, watch
from records_factory import make_cell, make_phases, make_record, make_steps

CELL = make_cell()


def make_console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    """Return a console of fixed size and what it prints to."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=160, height=40, color_system=None)
    return console, output


def play(observer: PlainLines | LiveTable) -> None:
    """Let an observer see one run from preparation to its record."""
    observer.preparing("importing the libraries")
    observer.sweep_started(runs_to_do=2, runs_on_disk=1)
    observer.run_started(CELL, 1)
    observer.message(PhaseStarted(phase="load"))
    observer.message(Heartbeat())
    observer.message(PhaseStarted(phase="steady", total_steps=8))
    for phase in make_phases():
        observer.message(ReadingMade(reading=phase))
    for step in make_steps()[:4]:
        observer.message(ReadingMade(reading=step))


def test_where_output_goes_decides_how_it_looks() -> None:
    """Lines for a log, a table for a terminal."""
    with watch(make_console(terminal=False)[0]) as observer:
        assert isinstance(observer, PlainLines)
    with watch(make_console(terminal=True)[0]) as observer:
        assert isinstance(observer, LiveTable)


def test_a_log_gets_one_line_a_phase_and_one_a_run() -> None:
    """Heartbeats and readings print nothing; a finished run shows speed, peak and time; a rerun counts."""
    console, output = make_console(terminal=False)
    lines = PlainLines(console)
    play(lines)
    lines.run_added()
    lines.run_ended(make_record(cell=CELL, outcome="contaminated", failure={"message": "Spoilt."}))
    lines.run_ended(make_record(cell=CELL, run=2))
    lines.run_ended(make_record(cell=CELL, outcome="oom", failure={"message": "Out of memory; less."}))
    lines.note("something to know")
    assert output.getvalue().splitlines() == [
        "importing the libraries …",
        "2 runs to do, 1 on disk already",
        f"{CELL.id} run 1: load",
        f"{CELL.id} run 1: steady",
        f"[1/3] {CELL.id} run 1: contaminated, 1,000, 0.98 GiB host, 11.3 s: Spoilt.",
        f"[2/3] {CELL.id} run 2: ok, 1,000, 0.98 GiB host, 11.3 s",
        f"[3/3] {CELL.id} run 1: oom, 1,000, 0.98 GiB host, 11.3 s: Out of memory; less.",
        "note: something to know",
    ]


def test_a_terminal_shows_step_speed_peak_and_what_is_left() -> None:
    """The current line follows the messages, and finished runs give the estimate."""
    console, output = make_console(terminal=True)
    with Live(console=console, auto_refresh=False) as live:
        table = LiveTable(live)
        play(table)
        table._draw()
        shown = output.getvalue().split("cell")[-1]
        assert all(
            text in shown for text in (CELL.id, "steady 4/8, 1,000 tokens/s, 0.98 GiB host", "0 of 2 runs")
        )
        table.run_ended(make_record(cell=CELL))
        shown = output.getvalue().split("cell")[-1]
        assert all(text in shown for text in ("ok", "1 of 2 runs", "1 on disk before", "about 11.3 s left"))


def test_a_live_table_draws_seldom_however_much_is_said() -> None:
    """A thousand messages at once cause at most a few redraws: watching must not cost what is measured."""
    console, output = make_console(terminal=True)
    with Live(console=console, auto_refresh=False) as live:
        table = LiveTable(live)
        table.run_started(CELL, 1)
        drawn = output.getvalue().count("tokens/s")
        for _ in range(1000):
            table.message(Heartbeat())
        assert output.getvalue().count("tokens/s") - drawn <= 2


def test_finished_runs_are_laid_out_once() -> None:
    """A redraw shows them again, and reads no record again."""
    console, output = make_console(terminal=True)
    with Live(console=console, auto_refresh=False) as live:
        table = LiveTable(live)
        for run in (1, 2):
            table.run_ended(make_record(cell=CELL, run=run, outcome="oom" if run == 1 else "ok"))
        table._ended.clear()
        table.run_started(CELL, 3)
        table._next_draw_s = float("-inf")
        table.message(Heartbeat())
        shown = output.getvalue().split("tokens/s")[-1]
        assert all(text in shown for text in (" oom ", " ok ", f"{CELL.id} run 3: start, "))


def test_the_outcome_table_has_every_reason() -> None:
    """Each run is a row, with the reason where it is not ok, and without control characters."""
    console, output = make_console(terminal=False)
    failure = {"message": "The worker was ended by SIGSEGV \x1b[31min phase load.", "phase": "load"}
    failed = make_record(outcome="crashed", failure=failure, measurement={}, run=2)
    console.print(outcome_table([make_record(), failed]))
    text = output.getvalue()
    assert "ok" in text
    assert "crashed" in text
    assert "SIGSEGV" in text
    assert "\x1b" not in text


def test_findings_are_one_line_each() -> None:
    """A good one begins with ok, a bad one with no."""
    findings = [
        Finding(subject="python", good=True, text="3.11.9"),
        Finding(subject="CUDA", good=False, text="no driver; install one"),
    ]
    assert finding_lines(findings).plain == "ok  python  3.11.9\nno  CUDA    no driver; install one"


def test_control_characters_are_taken_out() -> None:
    """A worker cannot clear the user's screen."""
    assert printable("a\x1b[2Jb\x07c\nd é") == "a [2Jb c\nd é"
