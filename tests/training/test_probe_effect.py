"""What measuring costs: the window's steps against a bare PyTorch loop, paired in one run."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.probes.machine import allocator_of
from bench.records.messages import Message
from bench.training.data import Batch, prepare_batches
from bench.training.methods import adapt
from bench.training.models import load_model
from bench.training.step import Trainer, build_trainer
from bench.training.weights import fetch_weights
from bench.training.window import TimedSteps
from tiny_cells import tiny_cell

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


def _timed_ns(run: Callable[[], None]) -> int:
    started_ns = time.perf_counter_ns()
    run()
    return time.perf_counter_ns() - started_ns


@pytest.mark.alone
@pytest.mark.usefixtures("tiny_weights")
def test_a_measured_step_costs_what_a_bare_one_does(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """It is not shown to take more than 2 % longer, sending the samples included.

    Each A B B A of steps is one ratio, so that a machine which changes its speed every few seconds does so in
    both; their median's standard error (1.25 times that of a mean, from quartiles) says what is shown.
    """
    trainer, batches = _trainer_and_batches()
    bare_ns: list[int] = []
    window_ns: list[int] = []
    with (tmp_path / "messages").open("wb", buffering=0) as messages:

        def send(message: Message) -> None:
            messages.write(message.model_dump_json().encode() + b"\n")

        timed = TimedSteps(trainer, allocator_of(trainer.device), send)

        def window_step(micro_batches: Sequence[Batch]) -> None:
            window_ns.append(_timed_ns(lambda: timed.run(micro_batches, "measured")))

        def bare_step(micro_batches: Sequence[Batch]) -> None:
            bare_ns.append(_timed_ns(lambda: _bare_step(trainer, micro_batches[0])))

        def abba() -> None:
            for step in (bare_step, window_step, window_step, bare_step):
                step(batches[len(bare_ns) % len(batches)])

        benchmark.pedantic(abba, rounds=ROUNDS, warmup_rounds=WARMUP_ROUNDS)  # type: ignore[no-untyped-call]
    counted = range(2 * WARMUP_ROUNDS, len(bare_ns), 2)
    ratios = [sum(bare_ns[at : at + 2]) / sum(window_ns[at : at + 2]) for at in counted]
    assert ROUNDS == len(ratios)
    low, ratio, high = statistics.quantiles(ratios, n=4)
    error = 1.25 * (high - low) / 1.35 / math.sqrt(len(ratios))
    benchmark.extra_info |= {"bare_over_window": ratio, "standard_error": error}
    print(f"bare over window: {ratio:.3f} ± {error:.3f}")  # noqa: T201 - figures
    assert ratio + STANDARD_ERRORS * error >= 0.98
