"""A callback in transformers' Trainer: the training goes on, and a record is left."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from bench.errors import UsageError
from bench.integrations import BenchCallback
from bench.records.store import load_records


def trainer(folder: Path, callback: BenchCallback | None, steps: int = 9) -> Trainer:
    """Return a Trainer over a tiny model and random tokens, two rows of 16 a step."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=128
    )
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 128, (64, 16))]
    arguments: dict[str, Any] = {"report_to": "none", "use_cpu": True, "save_strategy": "no"}
    return Trainer(
        model=LlamaForCausalLM(config),
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=2,
            logging_steps=1,
            disable_tqdm=True,
            **arguments,
        ),
        train_dataset=rows,
        callbacks=[callback] if callback else [],
    )


def test_a_training_leaves_a_record_and_goes_on_as_without(tmp_path: Path) -> None:
    """Every loss of the training is what it is without the callback, and the record holds its steps."""
    callback = BenchCallback(tmp_path / "results", steps=2, warmup=1)
    watched, plain = trainer(tmp_path, callback), trainer(tmp_path, None)
    watched.train()
    plain.train()
    losses = [
        [entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (watched, plain)
    ]
    assert len(losses[0]) == 9
    assert losses[0] == losses[1]
    assert load_records(tmp_path / "results").records == (callback.record,)
    assert callback.record is not None
    read = callback.record.measurement
    assert [step.stage for step in read.steps] == ["first", "warmup", "measured", "measured"]
    assert {step.tokens.computed for step in read.steps} == {32}
    assert read.ledger is not None
    assert read.ledger.categories_at_peak_bytes["optimizer_state"] > 0
    assert callback.record.cell.training.micro_batch == 2
    first = callback.record
    watched.train()
    assert callback.record is first  # a second training goes on unwatched
    assert "measured-within" in {caveat.code for caveat in read.caveats}


def test_a_training_that_is_too_short_says_so_and_ends(tmp_path: Path) -> None:
    """A warning holds both numbers of steps: what was trained must not be lost for it."""
    with pytest.warns(UserWarning, match=r"had to see 8 optimizer steps.*ended after 3"):
        trainer(tmp_path, BenchCallback(tmp_path / "results", steps=4, warmup=1), steps=3).train()


def test_numbers_of_steps_are_checked(tmp_path: Path) -> None:
    """None at all is refused before anything trains."""
    with pytest.raises(UsageError, match="steps of at least 1"):
        BenchCallback(tmp_path, steps=0)
