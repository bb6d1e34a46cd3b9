"""Accuracy on the user's own rows: chosen among few answers, or written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import UsageError
from bench.scenario.types import EvaluationSpec, JsonlData, TrainingSpec
from bench.training.evaluation import evaluate
from bench.training.rows.data import prepare_batches
from bench.training.rows.tasks import WORDS
from word_model import SYMBOLS, tiny_model, word_tokenizer

ASKED = EvaluationSpec(tasks=("held-out",))
LABELS = ("Longest", "Words")


def data(folder: Path, trained: list[tuple[str, str]], held_out: list[tuple[str, str]]) -> JsonlData:
    """Write rows of questions and answers to both files."""
    for name, rows in (("rows", trained), ("held_out", held_out)):
        lines = [json.dumps({"prompt": question, "completion": answer}) for question, answer in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return JsonlData(source="jsonl", path=str(folder / "rows.jsonl"), held_out=str(folder / "held_out.jsonl"))


def train(model: Any, rows: JsonlData, steps: int) -> None:
    """Train on the rows."""
    training = TrainingSpec(micro_batch=16, sequence_length=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for (batch,) in prepare_batches(rows, training, word_tokenizer(), len(SYMBOLS), steps).steps:
        model(**batch.inputs_on("cpu"), use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def right(model: Any, rows: JsonlData) -> tuple[int, int, str, list[str]]:
    """Return how many answers are right, of how many, by which metric, and what is said."""
    (reading,), caveats = evaluate(model, word_tokenizer(), ASKED, rows, "before", 64)
    correct = sum(item.correct for item in reading.items)
    return correct, len(reading.items), reading.metric, [caveat.code for caveat in caveats]


def test_of_few_different_answers_the_likeliest_counts(tmp_path: Path) -> None:
    """A model that always says the one label is right where that is the answer, and nowhere else."""
    questions = [f"{word} :" for word in WORDS[:40]]
    held_out = [(question, f" {LABELS[n % 4 == 0]}") for n, question in enumerate(questions)]
    rows = data(tmp_path, [(f"{word} :", f" {LABELS[1]}") for word in WORDS[50:82]], held_out)
    model = tiny_model()
    train(model, rows, 30)
    assert (10, 40, "acc", []) == right(model, rows)


def test_other_short_answers_are_written_and_compared(tmp_path: Path) -> None:
    """Those that were learnt are right; that the same rows were trained on is said."""
    learnt = [(f"{WORDS[n]} :", f" {WORDS[n + 40]} {WORDS[n + 80]}") for n in range(24)]
    others = [(f"{WORDS[n]} {WORDS[n]} :", f" {WORDS[n + 200]}") for n in range(8)]
    rows = data(tmp_path, learnt, [*learnt, *others])
    model = tiny_model()
    assert (0, 32) == right(model, rows)[:2]
    train(model, rows, 120)
    assert (24, 32, "exact_match", ["held-out-trained"]) == right(model, rows)


def test_prose_and_rows_without_a_question_are_refused(tmp_path: Path) -> None:
    """Nobody writes twenty words alike; the loss is what can be told of them."""
    prose = [(f"{WORDS[n]} :", " ".join(WORDS[n : n + 20])) for n in range(8)]
    with pytest.raises(UsageError, match=r"held_out\.jsonl have 20 words or more.*evaluation\.text"):
        right(tiny_model(), data(tmp_path, prose, prose))
    rows = data(tmp_path, prose, prose)
    (tmp_path / "held_out.jsonl").write_text('{"text": "no question"}')
    with pytest.raises(UsageError, match=r"held_out\.jsonl, line 1: .* has no question with an answer"):
        right(tiny_model(), rows)
