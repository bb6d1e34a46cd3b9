"""Cells over several processes, run for real over gloo: what they read together, and how they end."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.records.messages import CellJob, Job, Message, PhaseStarted, Send
from bench.records.predictions import Prediction
from bench.records.readings import Part
from bench.records.records import (
    LedgerReading,
    Measurement,
    PhaseReading,
    Record,
    StepSample,
    TextLoss,
    TokenCounts,
)
from bench.runner.executors.local import of_ranks
from bench.runner.schedule import SweepOptions
from bench.runner.sweep import run_sweep
from bench.scenario.load import load_scenario
from bench.workers.child import do_job
from bench.workers.launch import Launcher
from bench.workers.supervise import RunningJob
from replay_bench import FULL
from tiny_cells import tiny_cell

LONG = pytest.mark.skipif(not FULL, reason="a variant of the one beside it; FAULTS=full")
SCENARIO = """title = "t"
device = "cpu"
[models.tiny]
random = "tiny-llama-test"
[methods.lora]
rank = 4
[data]
source = "synthetic"
[training]
micro_batch = 2
sequence_length = 32
[window]
warmup_steps = 1
measured_steps = 2
[parallel]
strategy = ["ddp", "fsdp2"]
gpus = 2
"""


EVALUATION = """[evaluation]
tasks = ["mmlu-281"]
text = "{text}"
limit = 4
"""


def sweep(folder: Path, text: str = SCENARIO) -> tuple[Record, ...]:
    """Run a scenario with its predictions; return the records."""
    file = folder / "s.toml"
    file.write_text(text)
    options = SweepOptions(results=folder / "results", predict=True)
    return run_sweep(load_scenario(file).cells, options, lambda _event: None).records


@pytest.mark.parametrize("driver", ["window", pytest.param("trl-sft", marks=pytest.mark.slow)])
def test_two_processes_train_a_cell_and_each_holds_what_was_predicted(tmp_path: Path, driver: str) -> None:
    """The tokens are those of both, each rank is read, and live tensors are as predicted.

    But for what gloo's threads hold a little longer; tests/predict/test_ranks.py makes them let go. That
    questions are answered before leaves no trace in it.
    """
    if driver != "window":
        pytest.importorskip("trl")
    text = tmp_path / "text.txt"
    text.write_text("Each rank reads the same of a text, in step with the other. " * 20)
    evaluation = EVALUATION.format(text=text)
    records = sweep(tmp_path, f'{SCENARIO}[loop]\ndriver = "{driver}"\n{evaluation}')
    assert ["ok", "ok"] == [record.outcome for record in records], [record.failure for record in records]
    for record in records:
        measured, prediction = record.measurement, record.prediction
        assert all(step.tokens.computed == 2 * 2 * 32 for step in measured.steps)
        assert isinstance(measured.ranks, tuple)
        assert [0, 1] == [rank.rank for rank in measured.ranks]
        assert measured.ledger
        assert measured.ledger.peak_bytes == max(rank.ledger_peak_bytes or 0 for rank in measured.ranks)
        assert isinstance(prediction, Prediction)
        assert measured.ledger.peak_bytes == pytest.approx(prediction.allocated_peak_bytes, rel=0.02)
        assert [("before", 4), ("after", 4)] == [(one.when, len(one.items)) for one in measured.evaluations]
    first, second = (record.measurement.text_loss for record in records)
    assert isinstance(first, TextLoss)
    assert isinstance(second, TextLoss)
    assert first.before_nats == second.before_nats != first.after_nats
    assert first.after_nats == pytest.approx(second.after_nats, rel=1e-5)
    ddp, fsdp2 = (record.measurement.ledger for record in records)
    assert ddp
    assert fsdp2
    assert fsdp2.categories_at_peak_bytes["weights"] < ddp.categories_at_peak_bytes["weights"]


def test_what_is_not_done_over_several_processes_is_said_before(tmp_path: Path) -> None:
    """Merging an adapter: recorded as not to be had, with what to leave out."""
    records = sweep(tmp_path, SCENARIO.replace("[window]", "[window]\nmerge_check = true"))
    assert {"unavailable"} == {record.outcome for record in records}
    assert all(record.failure and "window.merge_check" in record.failure.message for record in records)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=LONG)])
def test_a_rank_that_dies_is_named_and_none_is_left(tmp_path: Path, victim: int) -> None:
    """Kill -9 while they train: one end for all, which says whose it was; the others are gone.

    FAULTS=full kills ten times either, later and later after the steps began.
    """
    for attempt in range(10 if os.environ.get("FAULTS") == "full" else 1):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        kill_a_rank(folder, victim, after_s=0.3 * attempt)


def kill_a_rank(tmp_path: Path, victim: int, *, after_s: float) -> None:
    """Kill a rank so long after the other has begun its measured steps."""
    cell = tiny_cell(
        {"kind": "lora"},
        parallel={"strategy": "ddp", "gpus": 2},
        window={"warmup_steps": 1, "measured_steps": 2_000},
    )
    running: RunningJob

    def hear(message: Message) -> None:
        if isinstance(message, PhaseStarted) and message.phase == "steady" and message.rank == 1 - victim:
            time.sleep(after_s)
            os.kill(running.workers[victim].pid, signal.SIGKILL)

    job = CellJob(cell_json=cell.model_dump_json(), rendezvous=str(tmp_path / "rendezvous"))
    running = RunningJob(job, Launcher(), cell.limits, ranks=2, hear=hear)
    pids = [worker.pid for worker in running.workers]
    end = running.to_end()
    assert end.outcome == "crashed", end.failure
    assert end.failure
    assert f"Rank {victim} of 2" in end.failure.message
    assert not any(psutil.pid_exists(pid) for pid in pids)


def asleep_in_rank_1(job: Job, send: Send) -> None:
    """Do a job as workers do, but that the second rank falls asleep as the measured steps begin."""

    def sleepy(message: Message) -> None:
        send(message)
        if isinstance(message, PhaseStarted) and message.phase == "steady":
            time.sleep(600)

    do_job(job, sleepy if getattr(job, "rank", 0) == 1 else send)


@pytest.mark.parametrize(
    "how", [pytest.param("stopped", marks=LONG), pytest.param("asleep", marks=pytest.mark.slow)]
)
def test_a_rank_that_hangs_is_named_and_none_is_left(tmp_path: Path, how: str) -> None:
    """Frozen, or alive without taking part: the one that waits for it in a collective is not blamed."""
    cell = tiny_cell(
        {"kind": "lora"},
        parallel={"strategy": "ddp", "gpus": 2},
        window={"warmup_steps": 1, "measured_steps": 2_000},
        limits={"heartbeat_timeout_s": 15},
    )
    running: RunningJob

    def hear(message: Message) -> None:
        steady = isinstance(message, PhaseStarted) and message.phase == "steady"
        if how == "stopped" and steady and message.rank == 1:
            os.kill(running.workers[1].pid, signal.SIGSTOP)

    job = CellJob(cell_json=cell.model_dump_json(), rendezvous=str(tmp_path / "rendezvous"))
    launcher = Launcher(work=asleep_in_rank_1) if how == "asleep" else Launcher()
    running = RunningJob(job, launcher, cell.limits, ranks=2, hear=hear)
    pids = [worker.pid for worker in running.workers]
    end = running.to_end()
    assert end.failure
    assert ("timeout", "steady") == (end.outcome, end.failure.phase), end.failure
    message = end.failure.message
    assert message.startswith("Rank 1 of 2: ")
    waited = "rank 0 waited for it in a collective for 15 s" in message
    assert waited or (how == "stopped" and "gave no sign of life for 15 s" in message)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def measured(peak_bytes: int, step_time_ns: int, tokens: int) -> Measurement:
    """Return what a rank read."""
    counts = TokenCounts(raw=tokens, non_padding=tokens, loss_bearing=tokens, computed=tokens)
    fields: dict[str, Any] = dict.fromkeys(LedgerReading.__struct_fields__, 0)
    ledger = LedgerReading(**fields | {"peak_bytes": peak_bytes})
    step = StepSample(index=0, stage="measured", step_time_ns=step_time_ns, tokens=counts, loss=tokens / 8)
    phase = PhaseReading(name="steady", duration_ns=step_time_ns, host_peak_bytes=peak_bytes * 2)
    return Measurement(ledger=ledger, steps=(step,), phases=(phase,))


def test_ranks_are_summed_up_by_the_worst_and_by_what_they_do_together() -> None:
    """Tokens add up, the slowest sets the time, the needier the peaks; one alone is left as it is."""
    one, other = measured(100, 7, 8), measured(300, 5, 16)
    both = of_ranks([one, other])
    (step,), (phase,) = both.steps, both.phases
    assert (24, 7, 1.5) == (step.tokens.computed, step.step_time_ns, step.loss)
    assert (600, 7) == (phase.host_peak_bytes, phase.duration_ns)
    assert both.ledger == other.ledger
    assert isinstance(both.ranks, tuple)
    assert [(100, 7), (300, 5)] == [(rank.ledger_peak_bytes, rank.step_time_ns) for rank in both.ranks]
    assert of_ranks([one]) is one
    assert all(isinstance(rank, Part) for rank in both.ranks)
