"""A calibration: two sides that are the same, its samples by group, on disk, for this machine only."""

from pathlib import Path

import pytest

from bench.errors import InfrastructureError, UsageError
from bench.gate.session import SessionOptions, calibrate, calibration_of, gate_references
from bench.gate.sides import side_as_is
from bench.records.records import Record
from bench.records.sessions import Sitting, SittingRecords, read_calibration, require_this_machine
from bench.scenario.gate import GateSpec
from records_factory import make_record
from replay_worker import make_cell

COMMAND = (str(Path(__file__).parents[1] / "support" / "replay_serve.py"),)


def test_unchanged_code_is_run_against_itself(tmp_path: Path) -> None:
    """A group for each side, a sample for each step; a cell that fails is named, and the rest is of use."""
    cells = [make_cell("ok"), make_cell("exception")]
    found = calibrate(cells, SessionOptions(folder=tmp_path, looks=(2,), command=COMMAND), sittings=1)
    assert found == read_calibration(tmp_path) == read_calibration(tmp_path / "calibration.json")
    assert ["replay/ok"] == [cell.cell for cell in found.cells]
    assert [(1, "base", 2), (1, "candidate", 2)] == [
        (group.sitting, group.side, len(group.runs)) for group in found.cells[0].groups
    ]
    (runs,) = found.runs(cells[0].digest, "tokens_per_second")
    assert [8, 8, 8, 8] == [len(run) for run in runs]
    assert () == found.runs(cells[1].digest, "tokens_per_second")
    assert ["replay/exception did not run to its end, so its noise is not known."] == [
        caveat.message for caveat in found.caveats
    ]


def test_noise_is_learnt_as_a_gate_meets_it(tmp_path: Path) -> None:
    """Sides that take turns at steps, as the scenario's gate says; another gate refuses that calibration."""
    by_steps = GateSpec(interleave="steps")
    options = SessionOptions(folder=tmp_path, looks=(2,), gate=by_steps, command=COMMAND)
    found = calibrate([make_cell("ok")], options, sittings=1)
    assert "steps" == found.interleave
    ((base, candidate),) = found.pairs(make_cell("ok").digest, "tokens_per_second")
    assert [8, 8] == [len(run) for run in base] == [len(run) for run in candidate]
    gate = SessionOptions(folder=tmp_path / "sittings", gate=GateSpec())
    with pytest.raises(UsageError, match="took turns at steps, and those of this gate take turns at runs"):
        gate_references([make_cell("ok")], ("nowhere", None), gate, calibration=found)


def sitting_of(records: tuple[Record, ...]) -> SittingRecords:
    """Return a session whose sides both made these."""
    facts = side_as_is("base").facts.model_copy(update={"environment": make_record().environment})
    return SittingRecords(
        folder=Path("sittings"),
        sitting=Sitting(scenario="s", cells=(), base=facts, candidate=facts, looks=(2,), started_at="now"),
        records={"base": records, "candidate": records},
    )


def test_another_machine_and_other_threads_are_refused() -> None:
    """Versions may differ: that is what a gate is about."""
    record = make_record()
    found = calibration_of([record.cell], [sitting_of((record, record))])
    here = record.environment
    require_this_machine(found, here.replace(versions={"torch": "9.9"}))
    for changes in (
        {"machine": here.machine | {"cpu_model": "Abacus"}},
        {"threads": here.threads | {"OMP_NUM_THREADS": "7"}},
    ):
        with pytest.raises(UsageError, match=r"Abacus now|7 now"):
            require_this_machine(found, here.replace(**changes))
    with pytest.raises(UsageError, match="CUDA device None then, NVIDIA H100 now"):
        require_this_machine(found, here, "NVIDIA H100")


def test_nothing_measured_is_no_calibration() -> None:
    """And it says where to look."""
    failed = make_record(outcome="failed")
    with pytest.raises(InfrastructureError, match="no cell ran to its end, so nothing could be calibrated"):
        calibration_of([failed.cell], [sitting_of((failed,))])


def test_what_is_no_calibration_is_named(tmp_path: Path) -> None:
    """A folder without one, and another file."""
    with pytest.raises(UsageError, match="make one with bench calibrate"):
        read_calibration(tmp_path)
    (tmp_path / "calibration.json").write_text('{"calibration_version": 2}')
    with pytest.raises(UsageError, match=r"is not a calibration \(calibration_version: "):
        read_calibration(tmp_path)
