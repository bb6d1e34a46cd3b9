"""Predictions before a sweep: stored in its records, shown first, and used to skip what cannot fit."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.metrics import GIB, MIB
from bench.predict.plan import plan_before_sweep, with_prediction
from bench.records.messages import CellJob, Job
from bench.records.predictions import Plan, PlannedCell, Prediction, Refusal
from bench.records.records import DeviceFacts, Failure, Record
from bench.records.store import load_records
from bench.runner.schedule import Event, RunStarted, SweepOptions
from bench.runner.sweep import SweepResult, run_sweep
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from bench.workers.launch import Launcher, Worker
from records_factory import make_prediction
from replay_worker import make_cell, make_facts, replay

CARD = make_facts(
    cuda_available=True,
    cuda_unavailable_reason=None,
    cuda_name="NVIDIA L4",
    cuda_total_bytes=22 * GIB,
    cuda_capability=(8, 9),
    bf16_on_cuda=True,
)


H200 = CARD.replace(cuda_name="NVIDIA H200", cuda_total_bytes=143156 * MIB, cuda_capability=(9, 0))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep no answer longer than a test."""
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path / "cache"))


class Watcher:
    """Keeps the plan it is shown."""

    def __init__(self) -> None:
        """Start empty."""
        self.plans: list[Plan] = []
        self.started: list[str] = []

    def __call__(self, event: Event) -> None:
        """Keep it."""
        match event:
            case Plan():
                self.plans.append(event)
            case RunStarted():
                self.started.append(f"{event.cell.id} {event.run}")


def launcher() -> Launcher:
    """Return a launcher of replay workers."""
    return Launcher(work=replay, preload=["bench.workers.child"])


def sweep(folder: Path, observer: Watcher, *cells: Cell, skip_unfit: bool = False) -> SweepResult:
    """Run a sweep that predicts first."""
    options = SweepOptions(results=folder, predict=True, skip_unfit=skip_unfit)
    return run_sweep(cells, options, observer, launcher())


def on_cuda(behaviour: str, batch: int) -> Cell:
    """Return a cell for CUDA that is predicted to allocate so many GiB."""
    return make_cell(behaviour, device="cuda", training={"sequence_length": 256, "micro_batch": batch})


def test_a_record_keeps_the_speed_that_was_predicted_on_its_card() -> None:
    """A plan has it once, in the verdict; a record has no verdicts. A refusal stays as it is."""
    cells = [on_cuda("fast", 8), on_cuda("refused", 8)]
    fast, refused = plan_before_sweep(cells, H200, launcher()).cells
    assert isinstance(fast.answer, Prediction)
    assert isinstance(fast.kept_answer, Prediction)
    assert fast.answer.speeds == ()
    assert [(one.card, one.low, one.high) for one in fast.kept_answer.speeds] == [("h200", 90, 110)]
    assert refused.kept_answer == refused.answer


def test_predictions_and_refusals_are_stored_and_shown_once(tmp_path: Path) -> None:
    """Each record has its own; what is on disk is not predicted again."""
    observer = Watcher()
    cells = (make_cell("ok"), make_cell("refused", method={"kind": "full", "name": "refused"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("replay_worker.BEHAVIOURS", {"ok": lambda _: None, "refused": lambda _: None})
        records = sweep(tmp_path, observer, *cells).records
    assert [len(plan.cells) for plan in observer.plans] == [2]
    first, second = (record.prediction for record in records)
    assert isinstance(first, Prediction)
    assert (first.platform.device, first.allocated_peak_bytes) == ("cpu", 4 * GIB)
    assert isinstance(second, Refusal)
    assert second.message == "aten::nonzero depends on data."
    assert load_records(tmp_path).records[0].prediction == first
    sweep(tmp_path, observer, *cells)
    assert len(observer.plans) == 1


def test_a_prediction_that_fails_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Allocator settings that are not modelled are a reason, not an error."""
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:cudaMallocAsync")
    (record,) = sweep(tmp_path, Watcher(), make_cell("ok")).records
    assert record.outcome == "ok"
    assert isinstance(record.prediction, Refusal)
    assert "cudaMallocAsync" in record.prediction.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_split_size_mb:abc", "abc is not a whole number."),
        ("expandable_segment:True", 'Perhaps you meant "expandable_segments"?'),
        ("garbage_collection_threshold:2", "2 is not a fraction between 0 and 1."),
    ],
)
def test_allocator_settings_that_torch_would_refuse_are_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    """Before a worker is started, with the text and what is wrong with it."""
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", text)
    (planned,) = plan_before_sweep([on_cuda("ok", 8)], CARD, launcher()).cells
    assert isinstance(planned.answer, Refusal)
    assert planned.answer.message.startswith(f'The allocator settings "{text}" cannot be used: ')
    assert said in planned.answer.message


def test_of_two_variables_the_predictor_takes_the_one_that_torch_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CUDA's own, even where it is empty."""
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64")
    allocators = []
    for text in ("expandable_segments:True", ""):
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", text)
        allocators.append(plan_before_sweep([on_cuda("refused", 8)], CARD, launcher()).allocator)
    assert allocators == ["expandable_segments:True", ""]


def test_running_out_of_memory_is_told_beside_what_was_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the sentence that the record and every report show; a refusal adds nothing."""
    monkeypatch.setattr("bench.runner.executors.local.probe", _probe)
    cell = on_cuda("oom", 22)
    (record,) = sweep(tmp_path, Watcher(), cell).records
    assert record.failure is not None
    assert record.failure.message.endswith(
        "turn gradient_checkpointing on; predicted to need 24.90 GiB with its CUDA context; "
        "the card has 22.00 GiB."
    )
    on_cpu = PlannedCell(cell=cell, answer=make_prediction(3 * GIB, platform=Platform(device="cpu")))
    refused = PlannedCell(cell=cell, answer=Refusal(message="No."))
    failure = Failure(message="Out of memory.")
    assert [with_prediction(failure, planned).message for planned in (on_cpu, refused, None)] == [
        "Out of memory; predicted to hold 3.00 GiB of tensors at its peak.",
        "Out of memory.",
        "Out of memory.",
    ]


def test_a_snapshots_file_lies_beside_its_record(tmp_path: Path) -> None:
    """The worker is told where; hostile ids cannot lead it elsewhere."""
    told: list[str | None] = []

    class Noting(Launcher):
        def start(
            self, job: Job, *, ranks: int = 1, host_memory_gib: float | None = None
        ) -> Sequence[Worker]:
            """Keep where a snapshot goes."""
            if isinstance(job, CellJob):
                told.append(job.snapshot_path)
            return super().start(job, ranks=ranks, host_memory_gib=host_memory_gib)

    cell = make_cell("ok", id="tiny/../../etc/passwd")
    for snapshot in (True, False):
        options = SweepOptions(results=tmp_path, force=True, snapshot=snapshot)
        run_sweep([cell], options, Watcher(), Noting(work=replay, preload=["bench.workers.child"]))
    (first, _) = sorted(path.name for path in tmp_path.glob("*.json"))
    assert told == [str(tmp_path / first.replace(".json", ".snapshot.pickle")), None]


def test_a_cuda_cell_is_judged_for_the_card_that_is_there() -> None:
    """Allocated and context beyond the card's memory: it does not fit."""
    plan = plan_before_sweep([on_cuda("ok", 8), on_cuda("ok-2", 22)], CARD, launcher())
    assert [card.title for card in plan.cards] == ["NVIDIA L4"]
    assert [one.verdicts[0].answer for one in plan.cells] == ["fits", "does not fit"]
    assert {one.answer.platform.capability for one in plan.cells if isinstance(one.answer, Prediction)} == {
        (8, 9)
    }


def outcomes(records: tuple[Record, ...]) -> list[tuple[str, int, str]]:
    """Return behaviour, run and outcome of each record."""
    return [(record.cell.method.name, record.run, record.outcome) for record in records]


def test_doomed_cells_are_skipped_on_request_and_run_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record names the figures; a sweep without the flag runs the cell after all."""
    monkeypatch.setattr("bench.runner.executors.local.probe", _probe)
    cells = (on_cuda("ok", 8), on_cuda("ok-2", 22))
    observer = Watcher()
    skipped = sweep(tmp_path, observer, *cells, skip_unfit=True)
    assert outcomes(skipped.records) == [("ok", 1, "ok"), ("ok-2", 1, "skipped")]
    assert observer.started == ["replay/ok 1"]
    assert skipped.complaint is None
    failure = skipped.records[1].failure
    assert failure is not None
    assert failure.message == (
        "Predicted not to fit: 22.00 GiB of tensors at the peak and a CUDA context of 0.70 GiB, where "
        "NVIDIA L4 has 22.00 GiB; run it without --skip-unfit to try it all the same."
    )
    assert sweep(tmp_path, observer, *cells, skip_unfit=True).new_records == 0
    assert outcomes(sweep(tmp_path, observer, *cells).records)[1:] == [
        ("ok-2", 1, "skipped"),
        ("ok-2", 2, "ok"),
    ]


def _probe(*_: object) -> DeviceFacts:
    return CARD
