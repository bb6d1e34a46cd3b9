"""What stays in memory from one step to the next, and when the cache is emptied."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench.probes.machine import Allocator
from bench.training.losses import forward_pass
from bench.training.rows.data import IGNORED_LABEL, prepare_batches
from bench.training.step import Trainer, build_trainer, run_step
from bench.training.window import TimedSteps
from tiny_cells import tiny_cell


def _trainer(**training: Any) -> Trainer:
    cell = tiny_cell(training={"sequence_length": 16, **training})
    config = AutoConfig.for_model(
        "llama",
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return build_trainer(AutoModelForCausalLM.from_config(config), cell, steps=4)


def _batches(trainer: Trainer, steps: int) -> Any:
    return prepare_batches(tiny_cell().data, trainer.training, None, 64, steps).steps


@pytest.mark.parametrize(
    ("keep", "alive"),
    [(False, [[False], [False, False]]), (True, [[True], [False, True]])],
    ids=["dropped", "kept"],
)
def test_outputs_live_as_long_as_asked(
    keep: bool,  # noqa: FBT001 - a parameter of the test
    alive: list[list[bool]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dropped before backward; or kept through the step, until the next step's are there."""
    seen: list[weakref.ref[torch.Tensor]] = []
    at_the_next: list[bool] = []

    def watched(*arguments: Any) -> Any:
        outputs: Any = forward_pass(*arguments)
        at_the_next.extend(reference() is not None for reference in seen)
        seen.append(weakref.ref(outputs.logits))
        return outputs

    monkeypatch.setattr("bench.training.step.forward_pass", watched)
    trainer = _trainer(keep_outputs=keep)
    found = []
    for micro_batches in _batches(trainer, 2):
        run_step(trainer, micro_batches)
        found.append([reference() is not None for reference in seen])
    assert found == alive
    assert at_the_next == [keep]


def test_chunked_training_is_whole_training() -> None:
    """Two steps with either loss give the same losses and the same norms, accumulation included."""
    results = []
    for loss in ("full", "chunked", "chunked-logits"):
        torch.manual_seed(0)
        trainer = _trainer(dtype="fp32", gradient_accumulation=2, loss=loss, loss_chunk_tokens=5)
        results.append([run_step(trainer, micro_batches) for micro_batches in _batches(trainer, 2)])
    for whole, parts in [*zip(*results[:2], strict=True), *zip(*results[::2], strict=True)]:
        torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(parts.gradient_norm, whole.gradient_norm, rtol=1e-4, atol=1e-5)


def test_micro_batches_weigh_as_their_loss_bearing_tokens() -> None:
    """One that bears its loss on a single token counts for one token, not for half of the step."""
    trainer = _trainer(dtype="fp32", gradient_accumulation=2, learning_rate=0.0)
    ((whole, other),) = _batches(trainer, 1)
    labels = other.labels.clone()
    labels[:, 2:] = IGNORED_LABEL
    single = replace(other, labels=labels, counts=other.counts.replace(loss_bearing=1))
    first, second = (run_step(trainer, [batch]).loss for batch in (whole, single))
    tokens = whole.counts.loss_bearing
    expected = (tokens * first + second) / (tokens + 1)
    torch.testing.assert_close(run_step(trainer, [whole, single]).loss, expected, rtol=1e-5, atol=1e-5)


class _CountingAllocator(Allocator):
    """Notes after how many samples its cache was emptied."""

    def __init__(self) -> None:
        self.samples: list[object] = []
        self.emptied_after: list[int] = []

    def empty_cache(self) -> None:
        """Note it."""
        self.emptied_after.append(len(self.samples))


@pytest.mark.parametrize(("every", "expected"), [(0, []), (1, [0, 1, 2, 3, 4]), (2, [1, 3])])
def test_the_cache_is_emptied_every_so_many_steps(every: int, expected: list[int]) -> None:
    """After the n-th step, before its sample is sent: 0 samples are out when the first step ends."""
    trainer = _trainer(empty_cache_steps=every)
    allocator = _CountingAllocator()
    timed = TimedSteps(trainer, allocator, allocator.samples.append)
    for micro_batches in _batches(trainer, 5):
        timed.run(micro_batches, "measured")
    assert expected == allocator.emptied_after
