"""What a user sees of a sweep: plain lines in a log, a table on a terminal, outcomes at the end."""

import io

import pytest
from rich.console import Console
from rich.live import Live

from bench.records.messages import EvaluationProgress, Heartbeat, Message, PhaseStarted, ReadingMade
from bench.runner.doctor import Finding
from bench.runner.live import (
    CurrentRun,
    LiveTable,
    PlainLines,
    finding_lines,
    outcome_table,
    printable,
    watch,
    watch_predicting,
)
from bench.runner.schedule import Note, Observe, Preparing, RunEnded, RunStarted, SweepStarted
from records_factory import make_cell, make_phases, make_record, make_steps

CELL = make_cell()


def make_console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    """Return a console of fixed size and what it prints to."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=160, height=40, color_system=None)
    return console, output


def play(observe: Observe) -> None:
    """Show one run from preparation to its record."""
    observe(Preparing("importing the libraries"))
    observe(SweepStarted(runs_to_do=2, runs_on_disk=1))
    observe(RunStarted(CELL, 1))
    said: list[Message] = [
        PhaseStarted(phase="load"),
        Heartbeat(),
        PhaseStarted(phase="steady", total_steps=8),
    ]
    said += [ReadingMade(reading=reading) for reading in (*make_phases(), *make_steps()[:4])]
    for message in said:
        observe(message)


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
    spoilt = make_record(cell=CELL, outcome="contaminated", failure={"message": "Spoilt."})
    lines(RunEnded(spoilt, again=True))
    lines(RunEnded(make_record(cell=CELL, run=2)))
    lines(RunEnded(make_record(cell=CELL, outcome="oom", failure={"message": "Out of memory; less."})))
    lines(Note("something to know"))
    assert output.getvalue().splitlines() == [
        "importing the libraries …",
        "2 runs to do, 1 on disk already",
        f"{CELL.id} run 1: load",
        f"{CELL.id} run 1: steady",
        f"[1/3] {CELL.id} run 1: contaminated, 1,000, 0.98 GiB process, 11.3 s: Spoilt. (about 22.6 s left)",
        f"[2/3] {CELL.id} run 2: ok, 1,000, 0.98 GiB process, 11.3 s (about 11.3 s left)",
        f"[3/3] {CELL.id} run 1: oom, 1,000, 0.98 GiB process, 11.3 s: Out of memory; less.",
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
            text in shown for text in (CELL.id, "steady 4/8, 1,000 tokens/s, 0.98 GiB process", "0 of 2 runs")
        )
        table(RunEnded(make_record(cell=CELL)))
        shown = output.getvalue().split("cell")[-1]
        assert all(text in shown for text in ("ok", "1 of 2 runs", "1 on disk before", "about 11.3 s left"))


def test_an_evaluation_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal at each redraw; in a log at once and every ten seconds, and no more once it is over."""
    now_s = [100.0]
    monkeypatch.setattr("bench.runner.live.time.monotonic", lambda: now_s[0])
    console, output = make_console(terminal=False)
    lines = PlainLines(console)
    said: list[Message] = [PhaseStarted(phase="evaluate_before")]
    said += [EvaluationProgress(task="held-out", done=done, total=1600) for done in range(0, 1600, 100)]
    lines(RunStarted(CELL, 1))
    for message in said:
        lines(message)
        now_s[0] += 1

    told = f"{CELL.id} run 1: evaluate_before"
    counts = [f"{told} held-out {done}/1,600 requests" for done in ("0", "1,000")]
    assert [told, *counts] == output.getvalue().splitlines()

    run = CurrentRun(CELL, 1)
    run.take(EvaluationProgress(task="held-out", done=1500, total=1600))
    assert "held-out 1,500/1,600 requests" in run.line
    run.take(PhaseStarted(phase="ledger"))
    assert "requests" not in run.line


def test_what_is_left_is_told_from_runs_of_before() -> None:
    """At once where each cell ran before; where one did not, once a run of this sweep has ended."""
    for expected_s, told in (((60.0, 30.0), ", about 1 min 30 s left"), ((60.0, None), "")):
        console, output = make_console(terminal=False)
        lines = PlainLines(console)
        lines(SweepStarted(2, 0, expected_s))
        assert f"2 runs to do, 0 on disk already{told}\n" == output.getvalue()
        lines(RunStarted(CELL, 1))
        lines(RunEnded(make_record(cell=CELL)))
        after = "30.0 s" if expected_s[1] else "11.3 s"
        assert f"about {after} left" in output.getvalue().splitlines()[-1]


def test_runs_beside_each_other_are_left_at_their_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes that took 10 s for two runs take 20 s for four more, not four times what a run takes."""
    now_s = [100.0]
    monkeypatch.setattr("bench.runner.live.time.monotonic", lambda: now_s[0])
    console, output = make_console(terminal=False)
    lines = PlainLines(console)
    lines(SweepStarted(6, 0))
    for run in (1, 2):
        lines(RunStarted(CELL, run))
    now_s[0] += 10
    for run in (1, 2):
        lines(RunEnded(make_record(cell=CELL, run=run)))
    assert output.getvalue().splitlines()[-1].endswith("(about 20.0 s left)")


def test_a_live_table_draws_seldom_however_much_is_said() -> None:
    """A thousand messages at once cause at most a few redraws: watching must not cost what is measured."""
    console, output = make_console(terminal=True)
    with Live(console=console, auto_refresh=False) as live:
        table = LiveTable(live)
        table(RunStarted(CELL, 1))
        drawn = output.getvalue().count("tokens/s")
        for _ in range(1000):
            table(Heartbeat())
        assert output.getvalue().count("tokens/s") - drawn <= 2


def test_finished_runs_are_laid_out_once() -> None:
    """A redraw shows them again, and reads no record again."""
    console, output = make_console(terminal=True)
    with Live(console=console, auto_refresh=False) as live:
        table = LiveTable(live)
        for run in (1, 2):
            table(RunEnded(make_record(cell=CELL, run=run, outcome="oom" if run == 1 else "ok")))
        table._ended.clear()
        table(RunStarted(CELL, 3))
        table._next_draw_s = float("-inf")
        table(Heartbeat())
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
        Finding("python", "3.11.9"),
        Finding("CUDA", "no driver; install one", good=False),
    ]
    assert finding_lines(findings).plain == "ok  python  3.11.9\nno  CUDA    no driver; install one"


def test_control_characters_are_taken_out() -> None:
    """A worker cannot clear the user's screen."""
    assert printable("a\x1b[2Jb\x07c\nd é") == "a [2Jb c\nd é"


def test_a_log_says_at_once_that_predicting_began_and_that_it_ended() -> None:
    """What was kept from earlier is no prediction, and says nothing; an end is said once."""
    text = io.StringIO()
    with watch_predicting(Console(file=text, width=80)) as progress:
        progress(3, 3)
    assert not text.getvalue()
    with watch_predicting(Console(file=text, width=80)) as progress:
        for done in (0, 1, 2, 3, 3):
            progress(done, 3)
    assert ["predicting: 0 of 3 cells", "predicting: 3 of 3 cells"] == text.getvalue().splitlines()
