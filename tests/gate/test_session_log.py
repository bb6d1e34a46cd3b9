"""The order of runs A B B A, runs step by step in turn, and lines of a session and of a calibration."""

import errno
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.compare.gate_report import judge_folder
from bench.errors import InfrastructureError, UsageError
from bench.gate import session
from bench.gate.process import run_together
from bench.gate.protocol import Made
from bench.gate.session import SessionOptions, noise_lines, run_session, warm_ups
from bench.gate.session_log import SessionLog, order_of
from bench.gate.sides import side_as_is
from bench.records.records import Failure
from bench.records.sessions import SideName, Sitting, SittingRecords, SittingRun
from bench.scenario.cell import Cell
from bench.scenario.gate import GateSpec
from bench.stats.power import NoiseRow
from records_factory import make_record
from replay_worker import make_cell

FACTS = side_as_is("base").facts
SESSION = Sitting(scenario="s", cells=(), base=FACTS, candidate=FACTS, looks=(2,), started_at="now")


def made(side: SideName, repeat: int, outcome: str = "ok", purpose: str = "measured") -> SittingRun:
    """Return a run of the cell ``replay/ok``."""
    fields = {"cell": "replay/ok", "side": side, "purpose": purpose, "repeat": repeat, "outcome": outcome}
    return SittingRun.model_validate(
        fields | {"started_at": "2026-11-22T00:00:00.000+00:00", "total_ns": 1, "file": "a.json"}
    )


def test_sides_alternate_so_that_a_linear_drift_hits_both_alike() -> None:
    """After every second repeat the places of both sides in the order sum to the same."""
    order = list(itertools.chain.from_iterable(order_of(repeat) for repeat in range(1, 9)))
    assert list("ABBAABBAABBAABBA") == ["A" if side == "base" else "B" for side in order]
    for repeats in (2, 4, 6, 8):
        places: dict[SideName, int] = {"base": 0, "candidate": 0}
        for place, side in enumerate(order[: 2 * repeats]):
            places[side] += place
        assert places["base"] == places["candidate"]


def test_what_was_run_is_left_out_and_what_others_spoilt_is_not() -> None:
    """A session that broke off between two runs of a repeat goes on with the second."""
    runs = [
        made("base", 0, purpose="warm-up"),
        made("base", 1),
        made("candidate", 1),
        made("candidate", 2, outcome="contaminated"),
        made("candidate", 2),
        made("base", 3, outcome="contaminated"),
    ]
    log = SessionLog(
        folder=Path(), session=SESSION.model_copy(update={"runs": runs}), processes={}, tell=print
    )
    assert [(), ("base",), ("base", "candidate")] == [log.left("replay/ok", repeat) for repeat in (1, 2, 3)]


def test_each_model_and_device_is_warmed_up_once_on_each_side() -> None:
    """By its first cell, in the order of the cells."""
    other = {"name": "other", "random": "toy"}
    cells = [make_cell("ok"), make_cell("ok-2"), make_cell("ok-3", model=other)]
    assert ["replay/ok", "replay/ok-3"] == [cell.id for cell in warm_ups(cells)]


COMMAND = (str(Path(__file__).parents[1] / "support" / "replay_serve.py"),)
GATE = GateSpec(interleave="steps", repeats=2, max_repeats=3)
STEPS = 8  # measured ones of a replay worker


def sit(folder: Path, cells: Sequence[Cell]) -> SittingRecords:
    """Run two repeats of each cell, step by step in turn, and a third of what is undecided: nothing."""
    options = SessionOptions(folder=folder, looks=(2, 3), gate=GATE, command=COMMAND)
    sides = side_as_is("base"), side_as_is("candidate")
    return run_session(cells, sides, lambda _records, _repeats: (), options)


def test_steps_alternate_and_each_side_begins_every_other_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records, verdicts and the page say how it was done; a run that dies leaves the rest to the other."""
    order = tmp_path / "order"
    monkeypatch.setenv("REPLAY_ALONE", str(order))
    result = sit(tmp_path / "sittings", [make_cell("ok"), make_cell("sigkill")])
    in_turn = ["first", *["second", "second", "first", "first"] * 3, "second", "second", "first"]
    assert in_turn * 3 == order.read_text().split()
    measured = [run for run in result.sitting.runs if run.purpose == "measured"]
    assert [("base", 1), ("candidate", 1), ("candidate", 2), ("base", 2)] == [
        (run.side, run.repeat) for run in measured if run.cell == "replay/ok"
    ]
    assert ["crashed", "crashed"] == [run.outcome for run in measured if run.cell == "replay/sigkill"]
    noted = [caveat for record in result.records["base"] for caveat in record.measurement.caveats]
    assert ["steps-in-turn", "forked"] * 3 == [caveat.code for caveat in noted]
    assert ["False"] * 3 == [caveat.message for caveat in noted if caveat.code == "forked"]
    assert [STEPS + 3] * 3 == [len(record.measurement.steps) for record in result.records["candidate"]]
    verdicts = judge_folder(result.folder)
    assert "one sitting by steps" == verdicts.design
    (speed,) = [one for one in verdicts.gated if one.metric == "tokens_per_second"]
    assert ("inconclusive", 2, 1.0) == (speed.verdict, speed.repeats, speed.ratio)
    assert "but 2 repeats may fall apart so by chance, whatever the noise; run 8" in speed.reason


def test_two_models_do_not_share_a_gpu(tmp_path: Path) -> None:
    """Said before any process is started."""
    with pytest.raises(UsageError, match=r'gate.interleave = "steps" keeps both sides in memory at once'):
        sit(tmp_path, [make_cell("ok", device="cuda")])
    exact = SESSION.model_copy(update={"gate": GATE, "exact_only": True})  # its sides run one after the other
    session._require_one_at_a_time_on_gpus([make_cell("ok", device="cuda")], exact)


def test_a_temporary_folder_without_room_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sentence, before any side is given a run."""

    def full(path: str, mode: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path, mode)

    monkeypatch.setattr(os, "mkfifo", full)
    with pytest.raises(InfrastructureError, match=r"No space left on device\); set TMPDIR to a local folder"):
        run_together([], make_cell("ok"), {})


class Slow:
    """A side whose measured runs are too slow."""

    seen_peak_bytes = None

    def run(self, cell: Cell, number: int) -> Made:
        """Return a record at once."""
        ended: dict[str, Any] = {"outcome": "timeout", "failure": Failure(message="Too slow.")}
        changes = ended if self.measured else {}
        return Made(record=make_record(cell=cell, run=number, total_ns=1_500_000_000, **changes))

    measured = False


def test_a_session_line_by_line(tmp_path: Path) -> None:
    """How runs ended and why."""
    slow, told = Slow(), list[str]()
    sides: Any = {"base": slow, "candidate": slow}
    log = SessionLog(folder=tmp_path, session=SESSION, processes=sides, tell=told.append)
    log.run(make_cell("ok"), ["base"], 0, "warm-up")
    slow.measured = True
    log.run(make_cell("ok"), ["base"], 1)
    assert told == [
        "replay/ok warm-up base: ok after 1.5 s",
        "replay/ok repeat 1 base: timeout after 1.5 s: Too slow.",
    ]


def test_a_calibration_says_what_is_found_with_how_many_repeats() -> None:
    """For each cell and metric."""
    row = NoiseRow(
        cell="c",
        metric="tokens_per_second",
        spread_share=0.012,
        degrees_of_freedom=10,
        looks=(3, 8),
        detectable_shares=(0.061, 0.031),
        tolerance_share=0.05,
        repeats_needed=4,
    )
    (line,) = noise_lines([row])
    assert line == (
        "c tokens_per_second: spread 1.2 % from run to run (10 degrees of freedom); finds a change of 6.1 % "
        "with "
        "3 repeats, 3.1 % with 8 repeats; 5.0 % takes 4 repeats"
    )
