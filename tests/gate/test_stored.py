"""Stored results against baselines: accepting, refusing, judging, history."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UsageError
from bench.gate.stored import (
    accept_results,
    changes_in_history,
    compare_results,
    diff_baseline,
    gate_results,
)
from bench.records.records import Record
from bench.records.result_sets import BaselineFolder
from bench.records.store import write_record
from bench.scenario.gate import GateSpec
from sittings_factory import LOUD, MIB, QUIET, make_runs, write_sitting


def _write(folder: Path, records: list[Record]) -> Path:
    folder.mkdir(parents=True)
    for record in records:
        write_record(folder, record)
    return folder


def _day(day: int, records: list[Record]) -> list[Record]:
    """Return the runs as made on another day."""
    return [record.replace(started_at=f"2026-12-{day:02}T08:00:{record.run:02}Z") for record in records]


@pytest.fixture
def baseline(tmp_path: Path) -> BaselineFolder:
    """Return a baseline of one session with one cell."""
    chosen = BaselineFolder(root=tmp_path / "baselines", name="cpu")
    accept_results(_write(tmp_path / "day0", make_runs()), chosen, reason="first", new_level=False)
    return chosen


def test_an_accepted_sitting_is_what_results_are_held_against(
    tmp_path: Path, baseline: BaselineFolder
) -> None:
    """The same memory passes, 1 MiB more does not."""
    same, more = (
        _write(tmp_path / "a", make_runs()),
        _write(tmp_path / "b", make_runs(ledger_bytes=601 * MIB)),
    )
    assert "inconclusive" == gate_results(str(same), baseline, GateSpec()).verdict
    assert "regression" == gate_results(str(more), baseline, GateSpec()).verdict


def test_each_record_of_a_baseline_is_read_once(
    tmp_path: Path, baseline: BaselineFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To see that it is what was accepted, and for what it says."""
    opened: list[str] = []
    really_open = os.open

    def seen(path: Path, *arguments: Any, **options: Any) -> int:
        opened.append(str(path))
        return really_open(path, *arguments, **options)

    candidate = str(_write(tmp_path / "a", make_runs()))
    monkeypatch.setattr(os, "open", seen)
    gate_results(candidate, baseline, GateSpec())
    (accepted,) = baseline.read().current
    assert list(accepted.files) == [Path(path).name for path in opened if f"/{accepted.folder}/" in path]


def test_a_sitting_that_is_not_alike_needs_a_new_level(tmp_path: Path, baseline: BaselineFolder) -> None:
    """Less memory is a change too: accepted as a new level it counts alone, and the old one stays on disk."""
    less = _write(tmp_path / "less", _day(1, make_runs(ledger_bytes=500 * MIB)))
    with pytest.raises(UsageError, match=r"ledger_peak_bytes.*--new-level"):
        accept_results(less, baseline, reason="saves memory", new_level=False)
    accepted = accept_results(less, baseline, reason="saves memory", new_level=True)
    assert (2, 2) == (accepted.number, accepted.level)
    read = baseline.read()
    assert (["first", "saves memory"], [accepted]) == ([one.reason for one in read.accepted], [*read.current])
    assert len(list((baseline.root / "cpu" / "0001").iterdir())) == len(make_runs())
    before = _write(tmp_path / "again", _day(2, make_runs()))
    assert "regression" == gate_results(str(before), baseline, GateSpec()).verdict
    assert [("pass", True)] == [
        (one.verdict, one.improved)
        for one in diff_baseline(baseline, None).judgements
        if one.metric == "ledger_peak_bytes"
    ]


def test_what_may_not_be_accepted(tmp_path: Path, baseline: BaselineFolder) -> None:
    """Nothing without a reason, no run twice, none that failed, no name that leads elsewhere."""
    again = _write(tmp_path / "again", make_runs())
    with pytest.raises(UsageError, match="already; a session is accepted once"):
        accept_results(again, baseline, reason="once more", new_level=True)
    fresh = _write(tmp_path / "fresh", _day(1, make_runs()))
    with pytest.raises(UsageError, match="give it with"):
        accept_results(fresh, baseline, reason="  ", new_level=False)
    with pytest.raises(UsageError, match=r"no run of .* ended ok"):
        accept_results(
            _write(tmp_path / "x", make_runs(outcome="crashed")), baseline, reason="r", new_level=False
        )
    for name in ("..", "../x", "a/b", "/tmp", "", "-x"):  # noqa: S108 - a name that must be refused
        with pytest.raises(UsageError, match="is no name of a baseline"):
            accept_results(fresh, BaselineFolder(root=baseline.root, name=name), reason="r", new_level=False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (baseline.root / "link").symlink_to(elsewhere)
    with pytest.raises(UsageError, match="is a link"):
        accept_results(fresh, BaselineFolder(root=baseline.root, name="link"), reason="r", new_level=False)
    assert [1] == [one.number for one in baseline.read().accepted]


def test_a_record_that_was_changed_since_is_noticed(baseline: BaselineFolder, tmp_path: Path) -> None:
    """History is append-only: what was accepted is not edited."""
    file = next((baseline.root / "cpu" / "0001").iterdir())
    file.write_text(file.read_text().replace(str(600 * MIB), str(700 * MIB)))
    results = _write(tmp_path / "results", make_runs())
    with pytest.raises(UsageError, match="changed since it was accepted; restore it from git"):
        gate_results(str(results), baseline, GateSpec())


def test_an_index_that_names_files_elsewhere_is_refused(baseline: BaselineFolder) -> None:
    """It may come from a stranger."""
    index = baseline.root / "cpu" / "baseline.json"
    document = json.loads(index.read_text())
    document["accepted"][0]["files"] = {"../../secret.json": "0" * 64}
    index.write_text(json.dumps(document))
    with pytest.raises(UsageError, match="is not a baseline"):
        baseline.read()


def test_ten_sittings_gate_speed_and_tell_where_it_changed(tmp_path: Path, baseline: BaselineFolder) -> None:
    """Nine more days, then a level 8 % slower from session 11 on, with noise of half a per cent."""
    for day in range(1, 14):
        slower = 0.92 if day >= 10 else 1.0
        shift = slower * (1 + 0.005 * ((day * 7) % 5 - 2) / 2)
        runs = _day(day, make_runs(speeds=[speed * shift for speed in QUIET]))
        results = _write(tmp_path / f"day{day}", runs)
        if day in {10, 11}:
            speed = next(
                one
                for one in gate_results(str(results), baseline, GateSpec()).judgements
                if one.metric == "tokens_per_second"
            )
            assert "inconclusive" == speed.verdict
            assert ("one day in 11 is the slowest by chance" in speed.reason) == (day == 10)
        accept_results(results, baseline, reason=f"day {day}", new_level=day == 10)
    changes, sessions, _ = changes_in_history(baseline)
    ((metric, number, ratio),) = [(one.metric, one.number, one.ratio) for one in changes]
    assert ("tokens_per_second", 11, 14) == (metric, number, sessions)
    assert ratio == pytest.approx(0.92, abs=0.01)


def test_sides_of_one_sitting_are_judged_as_such(tmp_path: Path) -> None:
    """Comparing the two folders is judging the session."""
    sitting = write_sitting(tmp_path / "s", make_runs(), make_runs(speeds=[speed * 0.9 for speed in QUIET]))
    verdicts = compare_results(str(sitting / "base"), str(sitting / "candidate"), GateSpec())
    assert ("one sitting", "regression") == (verdicts.design, verdicts.verdict)
    apart = compare_results(
        str(_write(tmp_path / "a", make_runs(speeds=LOUD))),
        str(_write(tmp_path / "b", make_runs())),
        GateSpec(),
    )
    assert "two result sets" == apart.design
