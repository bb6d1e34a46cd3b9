"""Stored sittings: what counts, what is missing, and what strangers may write into one."""

import json
from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.io import write_json
from bench.records.sessions import SIDES, SideFacts, Sitting, SittingRun, load_sitting
from bench.records.store import record_file_name, write_record
from records_factory import make_record


def write_sitting(folder: Path) -> Sitting:
    """Write a sitting: a warm-up, a run that others spoilt, its repetition, and the other side's run."""
    runs = []
    for side, purpose, outcome, number in (
        ("base", "warm-up", "ok", 1),
        ("base", "measured", "contaminated", 1),
        ("base", "measured", "ok", 2),
        ("candidate", "measured", "ok", 1),
    ):
        record = make_record(run=number, outcome=outcome)
        target = folder / side / "warm-up" if purpose == "warm-up" else folder / side
        target.mkdir(parents=True, exist_ok=True)
        write_record(target, record)
        fields = {"cell": record.cell.id, "side": side, "purpose": purpose, "outcome": outcome, "repeat": 1}
        fields |= {"started_at": record.started_at, "total_ns": 1, "file": record_file_name(record)}
        runs.append(SittingRun.model_validate(fields))
    facts = SideFacts(kind="environment", understood="the environment as it is")
    sitting = Sitting(
        scenario="s",
        cells=("c",),
        base=facts,
        candidate=facts,
        looks=(3,),
        started_at="now",
        runs=tuple(runs),
    )
    write_json(folder / "sitting.json", sitting)
    return sitting


def test_only_runs_that_count_are_returned(tmp_path: Path) -> None:
    """Neither warm-ups nor what was run again."""
    sitting = write_sitting(tmp_path)
    found = load_sitting(tmp_path)
    assert (sitting, ()) == (found.sitting, found.problems)
    assert {"base": [2], "candidate": [1]} == {
        side: [record.run for record in found.records[side]] for side in SIDES
    }


def test_a_record_that_is_gone_is_named(tmp_path: Path) -> None:
    """The others are still read."""
    write_sitting(tmp_path)
    (gone,) = (tmp_path / "candidate").glob("*.json")
    gone.unlink()
    found = load_sitting(tmp_path)
    assert ((f"{gone}: is missing",), ()) == (found.problems, found.records["candidate"])
    gone.parent.rmdir()  # as where a gate was killed before that side had a run
    assert found == load_sitting(tmp_path)


@pytest.mark.parametrize("name", ["../base/x.json", "/etc/passwd", "x", ".hidden.json"])
def test_a_file_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    """A sitting may come from a stranger."""
    write_sitting(tmp_path)
    file = tmp_path / "sitting.json"
    document = json.loads(file.read_text())
    document["runs"][0]["file"] = name
    file.write_text(json.dumps(document))
    with pytest.raises(UsageError, match=r"is not a sitting \(runs\.0\.file"):
        load_sitting(tmp_path)
