"""bench compare, bench baseline, bench export and bench gate of stored results, as a user types them."""

import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

import pytest

from bench import cli
from bench.metrics import METRICS, Metric
from bench.records.derived_metrics import DERIVED
from bench.records.records import Record, encode_record
from bench.records.store import write_record
from bench.records.verdicts import Verdicts
from bench.scenario.gate import GateSpec
from bench.stats.sequential import policies
from records_factory import make_cell, make_evaluation, make_measurement, make_record, make_steps
from sittings_factory import MIB, make_runs


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand where results/same and results/more lie; more has 1 MiB more."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    for minute, (folder, ledger_bytes) in enumerate((("same", 600 * MIB), ("more", 601 * MIB))):
        Path("results", folder).mkdir(parents=True)
        for record in make_runs(ledger_bytes=ledger_bytes):
            started_at = f"2026-11-22T09:{minute:02}:{record.run:02}Z"
            write_record(Path("results", folder), record.replace(started_at=started_at))


def bench(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run a command in this process and return its exit code."""
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    return int(leaving.value.code or 0)


def test_compare_prints_and_writes_one_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Terminal, JSON and Markdown say the same; a regression ends with 1, as of a gate."""
    files = ("-o", "v.json", "-o", "v.md")
    assert 1 == bench(monkeypatch, "compare", "results/same", "results/more", *files)
    assert "REGRESSION" in capsys.readouterr().out
    verdicts = Verdicts.model_validate_json(Path("v.json").read_bytes())
    assert ("two result sets", "regression") == (verdicts.design, verdicts.verdict)
    assert "| REGRESSION |" in Path("v.md").read_text()
    assert 1 == bench(monkeypatch, "compare", "results/same", "results/more", "--json")
    assert verdicts == Verdicts.model_validate_json(capsys.readouterr().out)
    assert 1 == bench(monkeypatch, "compare", "results/same", "results/more", "--markdown")
    assert Path("v.md").read_text() == capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "gated", "verdict"),
    [
        ("deterministic", False, "regression"),
        ("statistical", True, "inconclusive"),
    ],
)
def test_a_new_metric_is_one_entry_and_how_it_is_derived(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: Literal["deterministic", "statistical"],
    gated: bool,  # noqa: FBT001 - a parameter of the test
    verdict: str,
) -> None:
    """The table, a comparison and a gate have it then, and a scenario's [gate] may name it."""
    toy = Metric(
        name="toy_bytes",
        unit="bytes",
        better="lower",
        kind=kind,
        instrument="toy",
        meaning="Toy.",
        gated=gated,
    )
    monkeypatch.setitem(METRICS, "toy_bytes", toy)
    monkeypatch.setitem(DERIVED, "toy_bytes", DERIVED["ledger_peak_bytes"])
    assert 0 == bench(monkeypatch, "table", "results/more")
    (first, *_) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert str(601 * MIB) == first["toy_bytes"]
    assert 0 == bench(monkeypatch, "baseline", "accept", "results/same", "--name", "cpu", "--reason", "first")
    for command in (("compare", "results/same"), ("gate", "--baseline", "cpu")):
        capsys.readouterr()
        assert 1 == bench(monkeypatch, *command, "results/more", "--json")
        verdicts = Verdicts.model_validate_json(capsys.readouterr().out)
        (judged,) = [one for one in verdicts.judgements if one.metric == "toy_bytes"]
        assert (gated, verdict, "toy") == (judged.gated, judged.verdict, judged.instrument)
        assert [600 * MIB, 601 * MIB] == pytest.approx([judged.baseline, judged.candidate])
    gate = GateSpec.model_validate({"metrics": {"toy_bytes": {"gated": False}}})
    assert not policies(gate)["toy_bytes"].gated


def test_a_gate_in_continuous_integration_writes_all_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, a comment, JUnit, the step summary after what is there, and an annotation."""
    Path("summary.md").write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert 0 == bench(monkeypatch, "baseline", "accept", "results/same", "--name", "cpu", "--reason", "first")
    files = ("--comment", "c.md", "--junit", "j.xml")
    options = ("--baseline", "cpu", "--exact-only")
    assert 1 == bench(monkeypatch, "gate", "results/more", *options, *files)
    assert "::error title=ledger_peak_bytes of tiny/a::" in capsys.readouterr().err
    assert "1 regression" in Path("c.md").read_text()
    assert "1" == ET.parse("j.xml").getroot().get("failures")  # noqa: S314 - made here
    assert Path("summary.md").read_text().startswith("before\n\n## results/more against the baseline cpu")
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name)
    assert 0 == bench(monkeypatch, "gate", "results/same", *options)
    assert 3 == bench(monkeypatch, "gate", "results/same", "--baseline", "cpu")
    assert 0 == bench(monkeypatch, "gate", "results/same", "--baseline", "cpu", "--inconclusive", "pass")


def test_a_baseline_is_listed_shown_and_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its reasons are told; a new level is held against the one before."""
    accept = ("baseline", "accept", "--name", "cpu", "--reason")
    assert 0 == bench(monkeypatch, *accept, "first light", "results/same")
    assert 2 == bench(monkeypatch, *accept, "by mistake", "results/more")
    assert "begin a new level with --new-level" in capsys.readouterr().err
    assert 0 == bench(monkeypatch, *accept, "larger cache", "--new-level", "results/more")
    for arguments, said, code in (
        (("list",), "cpu: 1 session on level 2, 2 in all", 0),
        (("show", "cpu"), "first light", 0),
        (("diff", "cpu"), "regression: of", 1),
        (("history", "cpu"), "ledger_peak_bytes", 0),
    ):
        capsys.readouterr()
        assert code == bench(monkeypatch, "baseline", *arguments)
        assert said in capsys.readouterr().out
    assert 2 == bench(monkeypatch, "baseline", "show", "other")
    assert "there is no baseline other" in capsys.readouterr().err


def test_export_writes_what_pytest_benchmark_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """And compare takes it in again, as step times."""
    assert 0 == bench(monkeypatch, "export", "results/same", "-o", "same.json")
    assert ["tiny/a"] == [one["fullname"] for one in json.loads(Path("same.json").read_text())["benchmarks"]]
    assert 3 == bench(monkeypatch, "compare", "same.json", "same.json", "-o", "v.json")
    verdicts = Verdicts.model_validate_json(Path("v.json").read_bytes())
    assert {"outcome", "step_time_ns"} == {one.metric for one in verdicts.judgements}


def test_a_comparison_in_which_nothing_gated_was_compared_is_no_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Step times of another tool are not gated: that runs finished says nothing, and the words say so."""
    bench(monkeypatch, "export", "results/same", "-o", "same.json")
    assert 3 == bench(monkeypatch, "compare", "same.json", "same.json")
    assert "inconclusive: every run finished, but no gated metric was measured" in capsys.readouterr().out
    assert 0 == bench(monkeypatch, "compare", "same.json", "same.json", "--inconclusive", "pass")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("compare", "results/same", "nowhere"), "nowhere is no results folder"),
        (("compare", "results/same", "results/more", "-o", "v.txt"), "neither .json nor .md"),
        (("compare", "results/same", "results/more", "--json", "--markdown"), "exclude each other"),
        (("gate", "results/same"), "say what results/same is to be held against"),
        (("gate", "results/same", "--baseline", "../x"), "is no name of a baseline"),
        (("gate", "results/same", "--baseline", "x"), "there is no baseline x"),
        (("gate", "x.toml", "--base", "a", "--baseline", "b"), "name a scenario and --base REF"),
        (("baseline", "accept", "results/same", "--name", "x"), "give it with --reason"),
        (("export", "results/same", "-o", "x", "--to", "asv"), "'asv' is not one of 'pytest-benchmark'"),
    ],
)
def test_a_mistake_ends_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    """Exit code 2."""
    assert 2 == bench(monkeypatch, *arguments)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", "results/same", "results/more"),
        ("report", "results/same", "-o", "page.md"),
        ("baseline", "list"),
    ],
)
def test_neither_torch_nor_pandas_is_imported(arguments: tuple[str, ...]) -> None:
    """Nor is scipy.stats, which takes as long as reading a thousand records."""
    probe = f"""
import sys
from bench.cli import main
sys.argv = {["bench", *arguments]!r}
try:
    main()
except SystemExit as leaving:
    assert leaving.code in {None, 0, 1}  # 1: a regression was found
print("imported:", *sorted({{"torch", "pandas", "scipy.stats", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert "imported:" == done.stdout.splitlines()[-1]


def _sweep(cells: int) -> Iterator[tuple[str, Record]]:
    """Yield five runs of each cell on two sides, with 300 questions and 24 steps each, as in a real sweep."""
    evaluations = [
        make_evaluation(when, [index % 3 > 0 for index in range(150)]) for when in ("before", "after")
    ]
    for number in range(cells):
        cell = make_cell(id=f"tiny/c{number}", window={"measured_steps": 24})
        for side in ("a", "b"):
            for run in range(1, 6):
                speeds = [1000.0 + (7 * run + 3 * step + number) % 11 for step in range(24)]
                measurement = make_measurement(steps=make_steps(speeds), evaluations=evaluations)
                yield side, make_record(cell=cell, key=f"{side}{number}", run=run, measurement=measurement)


@pytest.mark.alone
def test_a_verdict_on_many_records_takes_about_as_long_as_json_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In CPU time, of 1,000 records, against Python's own json, which checks nothing of what it reads.

    On idle machines the two are within a fifth of each other; each counts at its best of three.
    """
    for side, record in _sweep(100):
        Path("many", side).mkdir(parents=True, exist_ok=True)
        name = f"{record.cell.id.replace('/', '-')}-{record.run}.json"
        Path("many", side, name).write_bytes(encode_record(record))
    contents = [file.read_bytes() for file in sorted(Path("many").glob("*/*.json"))]
    bench(monkeypatch, "compare", "results/same", "results/more")  # imports everything

    def seconds(work: Callable[[], object]) -> float:
        begun = time.process_time()
        work()
        return time.process_time() - begun

    parsed = min(seconds(lambda: [json.loads(content) for content in contents]) for _ in range(3))
    command = ("compare", "many/a", "many/b", "--json", "-o", "v.json")
    compared = min(seconds(lambda: bench(monkeypatch, *command)) for _ in range(3))
    verdicts = Verdicts.model_validate_json(Path("v.json").read_bytes())
    assert (500, 500) == (verdicts.baseline.runs, verdicts.candidate.runs)
    assert compared < 1.5 * parsed
