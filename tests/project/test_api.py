"""`import bench`: light, typed, and the same numbers as the commands."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import bench
from bench.errors import UsageError

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference" / "smollm2_cpu"


def test_importing_is_light() -> None:
    """Neither pandas nor torch comes with the module."""
    code = "import bench, sys; print({'pandas', 'torch', 'numpy'} & set(sys.modules), bench.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.startswith("set() ")
    assert done.stdout.split()[1] == bench.__version__


def test_unknown_attributes_are_attribute_errors() -> None:
    """The lazy lookup does not swallow typing mistakes."""
    with pytest.raises(AttributeError, match="nonsense"):
        getattr(bench, "nonsense")  # noqa: B009 - a name that no type checker may see


def test_frames_hold_every_sample_of_the_records() -> None:
    """Runs, steps, phases and answers each have one row for each sample."""
    results = bench.load(REFERENCE)
    assert len(results.runs) == len(results.records) == 12
    assert len(results.steps) == sum(len(record.measurement.steps) for record in results.records)
    assert len(results.phases) == sum(len(record.measurement.phases) for record in results.records)
    items = sum(len(reading.items) for one in results.records for reading in one.measurement.evaluations)
    assert len(results.answers) == items


def test_accuracy_from_answers_is_that_of_the_runs() -> None:
    """What a user computes from single answers is what the table says."""
    results = bench.load(REFERENCE)
    after = results.answers[results.answers["when"] == "after"]
    by_hand = after.groupby(["cell", "run"])["correct"].mean().rename("by_hand").reset_index()
    both = results.runs.merge(by_hand, on=["cell", "run"])
    assert len(both) == 12
    pd.testing.assert_series_equal(
        both["by_hand"].astype(float), both["accuracy_after"].astype(float), check_names=False
    )


def test_comparing_gives_one_row_per_cell_with_savings() -> None:
    """The frame of a comparison holds what the Markdown table shows, peaks in bytes."""
    results = bench.load(REFERENCE)
    frame = results.compare()
    assert len(frame) == 4
    ledgers = [record.measurement.ledger for record in results.records]
    assert {ledger.peak_bytes for ledger in ledgers if ledger} == set(frame["peak_ledger_bytes"])
    assert "<table" in results._repr_html_()


def test_comparing_two_sets_gives_verdicts() -> None:
    """Against itself a set has no regression, and its live tensors are equal to the byte."""
    verdicts = bench.load(REFERENCE).compare(bench.load(REFERENCE))
    ledger = verdicts[verdicts["metric"] == "ledger_peak_bytes"]
    assert set(ledger["ratio"]) == {1.0}
    assert "regression" not in set(verdicts["verdict"])


def test_figures_are_charts_and_unknown_names_list_those_there_are() -> None:
    """A notebook shows the chart; a wrong name is answered with the right ones."""
    results = bench.load(REFERENCE)
    assert results.figure("memory").to_dict()["$schema"]
    with pytest.raises(UsageError, match="memory"):
        results.figure("nonsense")


def test_a_plan_has_a_row_per_cell_and_card() -> None:
    """Needed and usable bytes stand beside the answer."""
    plan = bench.plan(ROOT / "scenarios" / "smollm2_cpu.toml", gpu=["rtx4090", "h100-80gb"], only="*/full/*")
    assert list(plan.cells["card"]) == ["rtx4090", "h100-80gb"]
    assert set(plan.cells["answer"]) == {"fits"}
    assert (plan.cells["needed_bytes"] < plan.cells["usable_bytes"]).all()


@pytest.mark.slow
def test_bounds_hold_the_largest_batch_that_fits() -> None:
    """One method at one length: a batch, and a longest sequence and rank."""
    bounds = bench.fit("tiny-llama-test", memory="1GiB", methods=["lora"], lengths=[64]).bounds
    assert {"micro_batch", "sequence_length", "rank"} == set(bounds["axis"])
    assert bounds["fits"].notna().any()


def test_the_notebook_in_examples_runs() -> None:
    """Every cell is executed by a real kernel."""
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    book = nbformat.read(  # type: ignore[no-untyped-call]
        ROOT / "examples" / "results.ipynb", as_version=4
    )
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("text/html" in output.get("data", {}) for output in outputs)
