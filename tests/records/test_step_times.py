"""Step times for pytest-benchmark and from it, checked by running it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.records.result_sets import load_result_set
from bench.records.run_summary import read_step_times, step_times_json, summarise_run
from records_factory import make_environment, make_record
from sittings_factory import make_runs


def test_the_real_pytest_benchmark_compares_our_results(tmp_path: Path) -> None:
    """Its table and its CSV have our cells, and its median is ours."""
    for name, speed in (("old", 1000.0), ("new", 800.0)):
        text = step_times_json([summarise_run(record) for record in make_runs(speeds=[speed] * 3)])
        (tmp_path / f"{name}.json").write_text(text)
    command = [str(Path(sys.executable).parent / "pytest-benchmark"), "compare", "old.json", "new.json"]
    options = ["--csv=out.csv", "--columns=min,median,stddev,iqr,outliers,ops,rounds", "--group-by=fullname"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "benchmark 'tiny/a': 2 tests" in done.stdout
    rows = [line.split(",") for line in (tmp_path / "out.csv").read_text().splitlines()]
    medians = [float(row[rows[0].index("median")]) for row in rows[1:]]
    assert [0.1, 0.125] == pytest.approx(sorted(medians))
    assert {"24"} == {row[rows[0].index("rounds")] for row in rows[1:]}


def test_what_pytest_benchmark_wrote_is_one_run_for_each_benchmark(tmp_path: Path) -> None:
    """Rounds are no runs: one process measured them all."""
    (tmp_path / "pytest.ini").touch()  # the names of tests begin here, whatever lies further up
    (tmp_path / "test_it.py").write_text("def test_sum(benchmark):\n    benchmark(sum, [1, 2])\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=.", "test_it.py"]
    options = ["--benchmark-json=out.json", "--benchmark-max-time=0.001", "--benchmark-save-data"]
    # It measures nothing where it believes to be one of several workers.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    subprocess.run([*command, *options], cwd=tmp_path, check=True, capture_output=True, env=own)
    (run,) = load_result_set(str(tmp_path / "out.json")).runs
    stats = json.loads((tmp_path / "out.json").read_text())["benchmarks"][0]["stats"]
    assert ("test_it.py::test_sum", "ok") == (run.cell_id, run.outcome)
    assert stats["median"] * 1e9 == pytest.approx(run.values["step_time_ns"])
    assert stats["rounds"] == len(run.samples["step_time_ns"])


def test_no_host_name_goes_out_and_memory_goes_along() -> None:
    """The metrics that pytest-benchmark does not know are extra information."""
    document = json.loads(step_times_json([summarise_run(make_record(environment=make_environment()))]))
    assert "" == document["machine_info"]["node"]
    assert 600 * 1024**2 == document["benchmarks"][0]["extra_info"]["ledger_peak_bytes"]


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"x":' * 20_000, '{"benchmarks": [{"fullname": "a", "stats": {"median": 0}}]}']
)
def test_another_file_is_none(text: str) -> None:
    """Nor is one with a time of nought."""
    assert read_step_times(text.encode()) is None
