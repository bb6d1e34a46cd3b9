"""A sitting whose sides take turns at steps, with replay workers: order, records, runs that fail, a GPU."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.compare.gate_report import judge_folder
from bench.errors import InfrastructureError, UsageError
from bench.gate import sitting
from bench.gate.begin import SittingOptions
from bench.gate.sides import side_as_is
from bench.gate.sitting import run_sitting
from bench.gate.together import run_together
from bench.records.sittings import SittingRecords
from bench.scenario.gate import GateSpec
from bench.scenario.types import Cell
from replay_worker import make_cell

COMMAND = (str(Path(__file__).parents[1] / "support" / "replay_serve.py"),)
GATE = GateSpec(interleave="steps", repeats=2, max_repeats=3)
STEPS = 8  # measured ones of a replay worker


def sit(folder: Path, cells: Sequence[Cell]) -> SittingRecords:
    """Run two repeats of each cell, step by step in turn, and a third of what is undecided: nothing."""
    options = SittingOptions(folder=folder, looks=(2, 3), gate=GATE, command=COMMAND)
    sides = side_as_is("base"), side_as_is("candidate")
    return run_sitting(cells, sides, lambda _records, _repeats: (), options)


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
    assert "without a calibration 2 repeats may fall apart so by chance; run 5" in speed.reason


def test_two_models_do_not_share_a_gpu(tmp_path: Path) -> None:
    """Said before any process is started."""
    with pytest.raises(UsageError, match=r'gate.interleave = "steps" keeps both sides in memory at once'):
        sit(tmp_path, [make_cell("ok", device="cuda")])
    exact = SittingOptions(folder=tmp_path, gate=GATE, exact_only=True)  # whose sides run one after the other
    sitting._require_one_at_a_time_on_gpus([make_cell("ok", device="cuda")], exact)


def test_a_temporary_folder_without_room_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sentence, before any side is given a run."""

    def full(path: str, mode: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path, mode)

    monkeypatch.setattr(os, "mkfifo", full)
    with pytest.raises(InfrastructureError, match=r"No space left on device\); set TMPDIR to a local folder"):
        run_together({}, make_cell("ok"), 1, {})
