"""The pytest plugin: each cell a test, alone, with pytest-xdist and beside pytest-benchmark."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.gate.stored import accept_results
from bench.records.records import Record
from bench.records.result_sets import BaselineFolder
from bench.records.store import write_record
from bench.scenario.load import load_scenario
from sittings_factory import MIB, make_runs

pytest_plugins = ["pytester"]

SCENARIO = """
device = "cpu"

[models.tiny]
random = "tiny-llama-test"

[methods.full]

[methods.lora]
rank = 4

[data]
source = "synthetic"

[training]
sequence_length = 32
micro_batch = 2

[gate.metrics.tokens_per_second]
gated = false
"""
PLUGIN = ("-p", "no:cacheprovider", "--bench-scenario", "toy.toml")


def _runs(scenario: Path, *, more_bytes: int = 0, outcome: str = "ok") -> list[Record]:
    """Return runs of both cells; the second one's memory and outcome can be told."""
    first, second = load_scenario(scenario).cells
    good = [record.replace(cell=first, key=first.digest) for record in make_runs()]
    other = make_runs(ledger_bytes=600 * MIB + more_bytes, outcome=outcome)
    return [*good, *(record.replace(cell=second, key=second.digest) for record in other)]


def _write(folder: Path, records: list[Record]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        write_record(folder, record)
    return folder


@pytest.fixture
def project(pytester: pytest.Pytester) -> Path:
    """Return a folder with a scenario and a baseline of it."""
    (pytester.path / "toy.toml").write_text(SCENARIO)
    accepted = _write(pytester.path / "accepted", _runs(pytester.path / "toy.toml"))
    chosen = BaselineFolder(root=pytester.path / "results" / "baselines", name="cpu")
    accept_results(accepted, chosen, reason="first", new_level=False)
    return pytester.path


@pytest.mark.parametrize("options", [(), ("-n", "2", "-p", "no:benchmark")])
def test_a_regression_is_a_failed_test(
    pytester: pytest.Pytester, project: Path, options: tuple[str, ...]
) -> None:
    """One cell passes, the other fails with the verdict as its message; one worker or several."""
    _write(project / "results" / "toy", _runs(project / "toy.toml", more_bytes=MIB))
    result = pytester.runpytest_subprocess(*PLUGIN, "--bench-baseline", "cpu", *options, "toy.toml")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*ledger_peak_bytes regression (600.00 MiB → 601.00 MiB): +1,048,576 bytes, tolerance 1,048,576"]
    )


def test_tests_of_the_project_run_beside_the_cells(pytester: pytest.Pytester, project: Path) -> None:
    """pytest-benchmark's fixture goes on working; the scenario need not be named twice."""
    _write(project / "results" / "toy", _runs(project / "toy.toml"))
    pytester.makepyfile("def test_sum(benchmark):\n    benchmark.pedantic(sum, ([1, 2],), rounds=2)\n")
    result = pytester.runpytest_subprocess(*PLUGIN, "--bench-baseline", "cpu", "-v")
    result.assert_outcomes(passed=3)


@pytest.mark.parametrize(
    ("options", "outcome"), [((), "skipped"), (("--bench-inconclusive", "fail"), "failed")]
)
def test_what_cannot_be_told_is_skipped_or_fails(
    pytester: pytest.Pytester, project: Path, options: tuple[str, ...], outcome: str
) -> None:
    """With speed gated again, one sitting of a baseline tells nothing of it."""
    _write(project / "results" / "toy", _runs(project / "toy.toml"))
    scenario = (project / "toy.toml").read_text()
    (project / "toy.toml").write_text(scenario.replace("gated = false", "gated = true"))
    result = pytester.runpytest(*PLUGIN, "--bench-baseline", "cpu", "-rs", *options, "toy.toml")
    result.assert_outcomes(**{outcome: 2})
    result.stdout.fnmatch_lines(["*the baseline has 1 session*"])


def test_without_a_baseline_a_cell_has_to_have_run_well(pytester: pytest.Pytester, project: Path) -> None:
    """What ran out of memory fails, and so does what was never run."""
    _write(project / "out", _runs(project / "toy.toml", outcome="oom"))
    result = pytester.runpytest(*PLUGIN, "--bench-results", "out", "toy.toml")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*ended as oom"])
    result = pytester.runpytest(*PLUGIN, "--bench-results", "nowhere", "toy.toml")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["nowhere is no results folder*"])


def test_a_mistake_in_the_scenario_is_an_error_of_collection(pytester: pytest.Pytester) -> None:
    """With the file's line."""
    (pytester.path / "toy.toml").write_text("devise = 'cpu'\n")
    result = pytester.runpytest(*PLUGIN, "toy.toml")
    assert pytest.ExitCode.INTERRUPTED == result.ret
    result.stdout.fnmatch_lines(["*toy.toml:1: devise: *"])


def test_unasked_it_does_nothing_and_imports_nothing(pytester: pytest.Pytester) -> None:
    """A scenario named by the way is no test, and the suite's modules stay out."""
    probe = "import sys, bench.pytest_plugin; print(sorted(m for m in sys.modules if m[:5] == 'bench'))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert "['bench', 'bench.pytest_plugin']" == done.stdout.strip()
    pytester.makepyfile("def test_one():\n    pass\n")
    (pytester.path / "toy.toml").write_text(SCENARIO)
    pytester.runpytest("-p", "no:cacheprovider").assert_outcomes(passed=1)
