"""Runs in experiment trackers, read back by the trackers' own readers, without a network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import load
from bench.api import Results
from bench.commands.trackers import TRACKERS, export_runs
from bench.errors import InfrastructureError, UnavailableError
from bench.records.store import write_record
from sittings_factory import make_runs

READERS = {
    "tensorboard": """
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
(folder, *more) = sorted(place.iterdir())
from tensorboard.util.tensor_util import make_ndarray
there = EventAccumulator(str(folder), {"tensors": 0}).Reload()
last = {tag: there.Tensors(tag)[-1].tensor_proto for tag in there.Tags()["tensors"]}
runs, metrics = 1 + len(more), {tag: float(make_ndarray(value)) for tag, value in last.items()}
steps = len(there.Tensors("step/step_time_ns"))
""",
    "mlflow": """
import os
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
from mlflow import MlflowClient
client = MlflowClient(place.absolute().as_uri())
(experiment,) = [one for one in client.search_experiments() if one.name == "finetune-bench"]
found = client.search_runs([experiment.experiment_id])
runs, metrics = len(found), found[0].data.metrics
assert found[0].data.params["method_kind"]
steps = len(client.get_metric_history(found[0].info.run_id, "step/step_time_ns"))
""",
    "wandb": r"""
import re  # its own reader is no part of the package any more: a key, a mark, a length and the value as JSON
files = sorted(place.glob("wandb/offline-run-*/*.wandb"))
data = files[0].read_bytes()
(speed,) = re.findall(rb"tokens_per_second\x82\x01.([0-9.]+)", data)
runs, metrics = len(files), {"tokens_per_second": float(speed)}
steps = len(re.findall(rb"step/step_time_ns\x82\x01", data)) // 2  # and as the last value
""",
}
"""Python that leaves ``runs``, and of one of them its ``metrics`` and how many ``steps`` it has."""


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Return two runs read from disk."""
    for record in make_runs()[:2]:
        write_record(tmp_path / "records", record)
    return load(tmp_path / "records")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("to", TRACKERS)
def test_a_tracker_reads_what_was_exported(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    """Every run, its metrics with their value, and each step."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert export_runs(results.runs, results.steps, to, tmp_path / to) == 2
    script = f"from pathlib import Path\nplace = Path({str(tmp_path / to)!r})\n{READERS[to]}"
    script += "print(runs, steps, metrics['tokens_per_second'])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**os.environ}
    )
    runs, steps, speed = done.stdout.split()
    assert (int(runs), int(steps)) == (2, len(results.records[0].measurement.steps))
    assert float(speed) in [pytest.approx(value) for value in results.runs["tokens_per_second"]]


def test_a_tracker_that_is_not_there_or_fails_is_told_in_a_sentence(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to install, or what its client said."""
    raised: list[Exception] = [ModuleNotFoundError(name="wandb"), OSError("no space left")]

    def fail(*_: object) -> None:
        raise raised.pop(0)

    monkeypatch.setitem(TRACKERS, "wandb", fail)
    with pytest.raises(UnavailableError, match="pip install 'finetune-bench"):
        export_runs(results.runs, results.steps, "wandb", tmp_path)
    with pytest.raises(InfrastructureError, match="took no run: no space left"):
        export_runs(results.runs, results.steps, "wandb", tmp_path)
