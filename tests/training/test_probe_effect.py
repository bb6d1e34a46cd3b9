"""What measuring costs: the window's steps against a bare PyTorch loop, paired in one run."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.probes.machine import allocator_of
from bench.probes.phases import PhaseReader
from bench.records.messages import Message, Send
from bench.records.records import TokenCounts
from bench.training.loading.models import load_model
from bench.training.loading.weights import fetch_weights
from bench.training.methods import adapt
from bench.training.rows.data import Batch, prepare_batches
from bench.training.step import Trainer, build_trainer
from bench.training.watcher import Script, WatchedLoop, Watcher
from bench.training.window import TimedSteps
from tiny_cells import tiny_cell

Step = Callable[[Any], int]
"""Takes a step's batches, and returns its time in ns."""
ROUNDS = 24
WARMUP_ROUNDS = 3
STANDARD_ERRORS = 3
MODEL = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 4096}


def _trainer_and_batches() -> tuple[Trainer, Sequence[Sequence[Batch]]]:
    cell = tiny_cell(
        {"kind": "lora"},
        model={"overrides": MODEL},
        training={"sequence_length": 128, "micro_batch": 4, "dtype": "fp32"},
    )
    loaded = load_model(cell, fetch_weights(cell.model), torch.device("cpu"), trust_remote_code=False)
    batches = prepare_batches(cell.data, cell.training, loaded.tokenizer, 4096, optimizer_steps=4).steps
    return build_trainer(adapt(loaded.model, cell), cell, ROUNDS), batches


def _bare_step(trainer: Trainer, batch: Batch) -> None:
    """Train as a short script would, without anything of this project."""
    model: Any = trainer.model
    loss = model(input_ids=batch.input_ids, labels=batch.labels, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trainer.parameters, 1.0)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    loss.item()


def _sender(file: IO[bytes]) -> Send:
    def send(message: Message) -> None:
        file.write(message.model_dump_json().encode() + b"\n")

    return send


def _timed_ns(run: Callable[[], None]) -> int:
    started_ns = time.perf_counter_ns()
    run()
    return time.perf_counter_ns() - started_ns


def _shown_ratio(benchmark: BenchmarkFixture, bare: Step, measured: Step, steps: Sequence[Any]) -> float:
    """Return the largest ratio of bare to measured time that three standard errors still allow.

    Each A B B A of steps is one ratio, so that a machine which changes its speed every few seconds does so in
    both; their median's standard error (1.25 times that of a mean, from quartiles) says what is shown.
    """
    bare_ns: list[int] = []
    measured_ns: list[int] = []

    def abba() -> None:
        for step, times in (
            (bare, bare_ns),
            (measured, measured_ns),
            (measured, measured_ns),
            (bare, bare_ns),
        ):
            times.append(step(steps[len(bare_ns) % len(steps)]))

    benchmark.pedantic(abba, rounds=ROUNDS, warmup_rounds=WARMUP_ROUNDS)  # type: ignore[no-untyped-call]
    counted = range(2 * WARMUP_ROUNDS, len(bare_ns), 2)
    ratios = [sum(bare_ns[at : at + 2]) / sum(measured_ns[at : at + 2]) for at in counted]
    assert ROUNDS == len(ratios)
    low, ratio, high = statistics.quantiles(ratios, n=4)
    error = 1.25 * (high - low) / 1.35 / math.sqrt(len(ratios))
    benchmark.extra_info |= {"bare_over_measured": ratio, "standard_error": error}
    print(f"bare over measured: {ratio:.4f} ± {error:.4f}")  # noqa: T201 - figures
    return ratio + STANDARD_ERRORS * error


@pytest.mark.alone
@pytest.mark.usefixtures("tiny_weights")
def test_a_measured_step_costs_what_a_bare_one_does(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """It is not shown to take more than 2 % longer, sending the samples included."""
    trainer, steps = _trainer_and_batches()
    with (tmp_path / "messages").open("wb", buffering=0) as messages:
        timed = TimedSteps(trainer, allocator_of(trainer.device), _sender(messages))
        shown = _shown_ratio(
            benchmark,
            lambda step: _timed_ns(lambda: _bare_step(trainer, step[0])),
            lambda step: _timed_ns(lambda: timed.run(step, "measured")),
            steps,
        )
    assert shown >= 0.98


class _Endless(WatchedLoop):
    """A loop whose steps are timed for ever."""

    def steps(self) -> Script:
        """Time each."""
        yield
        while True:
            yield from self.timed("measured")

    def counts(self) -> TokenCounts:
        """Count what the model was given."""
        seen = self.positions
        return TokenCounts(raw=seen, non_padding=seen, loss_bearing=seen, computed=seen)

    def found(self, _model: object) -> None:
        """Be told nothing: the model is given."""


@pytest.mark.alone
@pytest.mark.usefixtures("tiny_weights")
def test_a_watched_step_costs_what_a_bare_one_does(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Hooks, clock and the sent sample are not shown to take more than 1 % of a short step."""
    trainer, steps = _trainer_and_batches()
    with (tmp_path / "messages").open("wb", buffering=0) as messages:
        loop = _Endless(PhaseReader(_sender(messages), allocator_of(trainer.device)))
        loop.model = trainer.model
        loop.script()

        def watched(step: Any) -> int:
            with Watcher(loop, trainer.model).watching():
                return _timed_ns(lambda: _bare_step(trainer, step[0]))

        bare = _shown_ratio(
            benchmark, lambda step: _timed_ns(lambda: _bare_step(trainer, step[0])), watched, steps
        )
    assert loop.steps_taken == 2 * (ROUNDS + WARMUP_ROUNDS)
    assert bare >= 0.99
