"""The tidy table: a row per record, units in the names, NA for what is missing."""

from pathlib import Path

import pandas as pd
import pytest

from bench.errors import InfrastructureError, UsageError
from bench.metrics import METRICS
from bench.records.records import Failure, Measurement
from bench.records.table import grouped, tidy, write_table
from records_factory import (
    MIB,
    make_cell,
    make_evaluation,
    make_ledger,
    make_measurement,
    make_record,
    make_steps,
)

FULL = make_cell(id="tiny/full/b4-s256", method={"kind": "full"})
OOM = make_record(
    cell=FULL,
    outcome="oom",
    failure=Failure(message="The card is too small.", phase="first_backward"),
    measurement=Measurement(),
)


def test_one_row_per_record_in_order() -> None:
    """Two records make two rows, with the cell and the run of each."""
    frame = tidy([make_record(run=2), OOM])
    assert [("tiny/lora-r8/b4-s256", 2, "ok"), ("tiny/full/b4-s256", 1, "oom")] == list(
        frame[["cell", "run", "outcome"]].itertuples(index=False, name=None)
    )


def test_metrics_of_a_good_record() -> None:
    """Every metric is a column that holds what the raw samples say."""
    row = tidy([make_record(measurement=make_measurement(steps=make_steps([1000, 1250, 2000])))]).iloc[0]
    expected = {
        "ledger_peak_bytes": 600 * MIB,
        "host_peak_bytes": 1000 * MIB,
        "tokens_per_second": 1250.0,
        "step_time_ns": 80_000_000.0,
        "load_time_ns": 2_000_000_000,
        "op_count": 1234,
        "saved_for_backward_bytes": 100 * MIB,
        "parameters_trainable": 10_000,
        "accuracy_before": 0.25,
        "accuracy_after": 0.75,
    }
    assert expected == {name: row[name] for name in expected}
    assert set(METRICS) <= set(row.index)


def test_host_peak_leaves_evaluation_out() -> None:
    """An evaluation that used twice the memory does not raise the training peak."""
    record = make_record()
    evaluated = max(phase.host_peak_bytes or 0 for phase in record.measurement.phases)
    assert (2000 * MIB, 1000 * MIB) == (evaluated, tidy([record]).loc[0, "host_peak_bytes"])


def test_missing_is_na_never_zero() -> None:
    """A cell that ran out of memory has no metric at all, and says in which phase it ended."""
    row = tidy([OOM]).iloc[0]
    assert list(METRICS) == [name for name in METRICS if row[name] is pd.NA]
    assert ("first_backward", "The card is too small.") == (row["failure_phase"], row["failure_message"])


def test_a_failed_allocation_is_told_in_bytes() -> None:
    """What was asked for and what torch held then; NA where nobody said."""
    failure = Failure(message="Out.", requested_bytes=512, allocated_bytes=2048, reserved_bytes=4096)
    row = tidy([make_record(outcome="oom", failure=failure), make_record()])
    columns = ["failure_requested_bytes", "failure_allocated_bytes", "failure_reserved_bytes"]
    assert [[512, 2048, 4096], [pd.NA] * 3] == row[columns].astype(object).to_numpy().tolist()


def test_levers_are_columns_and_na_where_the_method_has_none() -> None:
    """A full fine-tuning row has no rank; its sequence length is there."""
    frame = tidy([make_record(), OOM])
    assert [8, pd.NA] == list(frame["method_rank"])
    assert [256, 256] == list(frame["training_sequence_length"])
    assert {"data_dataset", "method_quantisation", "window_ledger", "limits_timeout_s"} <= set(frame.columns)


def test_each_task_has_its_own_column_when_there_are_several() -> None:
    """The headline is the first task; every task is there under its name."""
    evaluations = (
        make_evaluation("after", [True, False], task="held-out"),
        make_evaluation("after", [True, True], task="mmlu-281"),
    )
    row = tidy([make_record(measurement=make_measurement(evaluations=evaluations))]).iloc[0]
    assert ("held-out", 0.5, 0.5, 1.0) == (
        row["accuracy_task"],
        row["accuracy_after"],
        row["accuracy_after_held-out"],
        row["accuracy_after_mmlu-281"],
    )
    assert row["accuracy_before"] is pd.NA


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_written_table_reads_back(tmp_path: Path, suffix: str) -> None:
    """Both formats keep rows, names, and the difference between nothing and nought."""
    frame, path = tidy([make_record(), OOM]), tmp_path / f"table{suffix}"
    write_table(frame, path)
    read = pd.read_parquet(path) if suffix == ".parquet" else pd.read_csv(path)
    assert list(frame.columns) == list(read.columns)
    assert [600 * MIB] == list(read["ledger_peak_bytes"].dropna())


def test_an_empty_table_has_its_columns() -> None:
    """No record at all still gives the names of what could have been there."""
    frame = tidy([])
    assert (0, True) == (len(frame), set(METRICS) <= set(frame.columns))


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    """The message names the file and the endings that work."""
    with pytest.raises(UsageError, match=r"table\.ods: .* as \.csv, \.parquet, \.tex, \.xlsx"):
        write_table(tidy([]), tmp_path / "table.ods")


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """A folder that does not exist is named, not a traceback."""
    with pytest.raises(InfrastructureError, match="cannot write"):
        write_table(tidy([]), tmp_path / "nowhere" / "table.csv")


def test_a_reading_of_zero_stays_zero() -> None:
    """A count of nought is a finding, and is kept apart from NA."""
    measurement = make_measurement(ledger=make_ledger(saved_for_backward_bytes=0))
    assert tidy([make_record(measurement=measurement)]).loc[0, "saved_for_backward_bytes"] == 0


def test_groups_hold_statistics_of_their_good_runs() -> None:
    """The mean over two runs of a method; a failed run is not in it, and what was not read is no column."""
    steps = (make_steps([1000, 1000]), make_steps([2000, 2000]))
    good = [make_record(run=run, measurement=make_measurement(steps=one)) for run, one in enumerate(steps, 1)]
    frame = grouped(tidy([*good, OOM]), ["method"], "mean")
    assert list(frame["method_name"]) == ["lora"]
    assert list(frame["runs_ok"]) == [2]
    assert list(frame["tokens_per_second"]) == [1500.0]
    assert "nvml_process_peak_bytes" not in frame


@pytest.mark.parametrize(
    ("by", "stat", "message"),
    [
        (["methd"], "mean", r"--group-by methd: .* perhaps you meant method"),
        (["method"], "mode", "--stat mode: .* mean, median, min, max, std"),
    ],
)
def test_unknown_groups_and_statistics_are_named(by: list[str], stat: str, message: str) -> None:
    """A mistake is answered with what there is."""
    with pytest.raises(UsageError, match=message):
        grouped(tidy([make_record()]), by, stat)


def test_latex_is_booktabs_and_inert(tmp_path: Path) -> None:
    """Rules of booktabs, underscores escaped, and columns without a reading left out."""
    write_table(grouped(tidy([make_record()]), ["method"], "median"), tmp_path / "table.tex")
    text = (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert r"\toprule" in text
    assert r"method\_name & runs\_ok" in text
    assert "nvml" not in text


def test_a_workbook_holds_the_same_numbers(tmp_path: Path) -> None:
    """What is read back from .xlsx is what was written."""
    frame = grouped(tidy([make_record()]), ["method"], "median")
    write_table(frame, tmp_path / "table.xlsx")
    back = pd.read_excel(tmp_path / "table.xlsx")
    assert list(back["ledger_peak_bytes"]) == list(frame["ledger_peak_bytes"])


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", " -2", "+3", "\x1b[31mred", "\u202etxt", "one\rtwo"])
def test_texts_of_strangers_are_only_shown(text: str, tmp_path: Path) -> None:
    """A failure's message begins no formula in a spreadsheet and moves no cursor of a terminal."""
    record = make_record(outcome="crashed", failure=Failure(message=text), measurement={})
    write_table(tidy([record]), tmp_path / "table.csv")
    (message,) = pd.read_csv(tmp_path / "table.csv")["failure_message"]
    assert message.isprintable()
    assert message.lstrip()[0] not in "=+-@"
    assert tidy([record])["failure_message"][0] == text, "what is computed with stays as it was read"
