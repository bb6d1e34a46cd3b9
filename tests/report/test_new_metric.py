"""A metric is added in three places, and is then shown, compared and gated everywhere."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import bench
from bench import cli
from bench.compare.comparison import compare
from bench.metrics import METRICS, Metric
from bench.records.derived_metrics import DERIVED
from bench.records.records import Record
from bench.records.store import write_record
from bench.records.table import tidy
from bench.report import comparison_columns
from bench.report.html import render_html
from bench.report.pages import render_markdown, render_terminal
from sittings_factory import MIB, make_runs

TOY = Metric(
    name="toy_bytes",
    unit="bytes",
    better="lower",
    kind="deterministic",
    instrument="ledger",
    meaning="Half of the peak by the ledger.",
    gated=True,
)


def _half_of_the_peak(record: Record) -> int | None:
    ledger = record.measurement.ledger
    return ledger.peak_bytes // 2 if ledger else None


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Add the metric: its entry, its derivation, its column; results/same and results/more differ in it."""
    monkeypatch.setitem(METRICS, TOY.name, TOY)
    monkeypatch.setitem(DERIVED, TOY.name, _half_of_the_peak)
    monkeypatch.setattr(comparison_columns, "COLUMNS_OF_METRICS", (TOY.name,))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for folder, ledger_bytes in (("same", 600 * MIB), ("more", 700 * MIB)):
        Path("results", folder).mkdir(parents=True)
        for record in make_runs(ledger_bytes=ledger_bytes):
            write_record(Path("results", folder), record)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run a command in this process and return its exit code."""
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    return int(leaving.value.code or 0)


def test_it_is_in_every_table_and_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bench table and its frame, the DataFrame, Markdown, HTML and the terminal."""
    records = make_runs(ledger_bytes=600 * MIB)
    comparison = compare(records)
    assert [300 * MIB] * len(records) == list(tidy(records)["toy_bytes"])
    assert [300 * MIB] == list(bench.load("results/same").compare()["toy_bytes"])
    assert "| toy |" in render_markdown(comparison)
    assert "300.00 MiB" in render_html(comparison, ())
    out = io.StringIO()
    Console(file=out, width=200).print(render_terminal(comparison))
    assert "300.00 MiB" in out.getvalue()
    assert 0 == run(monkeypatch, "table", "results/same")
    assert "toy_bytes" in capsys.readouterr().out.splitlines()[0]


def test_it_is_compared_and_gated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """More of it is a regression of bench compare, and of bench gate against a baseline."""
    assert 1 == run(monkeypatch, "compare", "results/same", "results/more", "--json")
    judged = {one["metric"]: one["verdict"] for one in json.loads(capsys.readouterr().out)["judgements"]}
    assert "regression" == judged["toy_bytes"]
    assert 0 == run(monkeypatch, "baseline", "accept", "results/same", "--name", "cpu", "--reason", "first")
    assert 1 == run(monkeypatch, "gate", "results/more", "--baseline", "cpu", "--exact-only", "-o", "v.md")
    assert "| toy_bytes | REGRESSION |" in Path("v.md").read_text()
