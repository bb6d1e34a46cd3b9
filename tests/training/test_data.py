"""Prepared data: labels that begin where the completion does, seeded order, and every caveat."""

import json
import random
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from bench.errors import UnavailableError, UsageError
from bench.scenario.types import JsonlData, SyntheticData, TaskData, TrainingSpec
from bench.training.rows.data import IGNORED_LABEL, Batch, PreparedData, prepare_batches
from bench.training.rows.tasks import task_items
from tiny_tokenizers import byte_level, wrapped

TASK = TaskData(task="longest-word", train_items=32)


def metaspace() -> Any:
    """Spell letters with ▁ for spaces, put before the text too, as Llama 2's tokenizer does."""
    letters = ["▁", *(chr(code) for code in range(33, 127)), "\n"]
    vocabulary = {name: n for n, name in enumerate(["<pad>", "<s>", "</s>", "<unk>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))  # noqa: S106 - a token, no secret
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return wrapped(tokenizer)


def prepare(
    data: TaskData | JsonlData | SyntheticData,
    steps: int = 2,
    tokenizer: Any = None,
    **training: Any,
) -> PreparedData:
    """Prepare batches with a byte-level tokenizer unless told otherwise."""
    settings: dict[str, Any] = {"sequence_length": 256, "micro_batch": 2, **training}
    return prepare_batches(data, TrainingSpec(**settings), tokenizer or byte_level(), 300, steps)


def text_file(tmp_path: Path, texts: list[str]) -> JsonlData:
    """Write plain text rows."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return JsonlData(source="jsonl", path=str(path), format="text", template="plain")


def batches(prepared: PreparedData) -> list[Batch]:
    """Return all micro-batches in order."""
    return [batch for step in prepared.steps for batch in step]


def labelled(batch: Batch, row: int) -> list[int]:
    """Return the labels of a row that count."""
    return [label for label in batch.labels[row].tolist() if label != IGNORED_LABEL]


def codes(prepared: PreparedData) -> list[str]:
    """Return the caveats by code."""
    return [caveat.code for caveat in prepared.caveats]


def ids_of(prepared: PreparedData) -> list[Any]:
    """Return every id of every batch."""
    return [batch.input_ids.tolist() for batch in batches(prepared)]


@pytest.mark.parametrize("tokenizer", [byte_level(), byte_level(bos=True), metaspace()])
def test_labels_are_exactly_the_completion(tokenizer: Any) -> None:
    """Each row's labels are the tokens of the whole text that follow those of the prompt."""
    whole = {
        tuple(tokenizer(item.prompt + item.completion)["input_ids"]): len(tokenizer(item.prompt)["input_ids"])
        for item in task_items("longest-word", "easy", "train", 32)
    }
    for batch in batches(prepare(TASK, tokenizer=tokenizer)):
        for row in range(2):
            length = int(batch.attention_mask[row].sum()) if batch.attention_mask is not None else None
            ids = tuple(batch.input_ids[row, :length].tolist())
            assert labelled(batch, row) == list(ids[whole[ids] :])


def test_train_on_all_labels_every_token_of_the_text() -> None:
    """Padding alone stays unlabelled; a beginning token is nothing to learn."""
    data = TASK.model_copy(update={"train_on": "all"})
    for batch in batches(prepare(data, tokenizer=byte_level(bos=True), batching="pad-to-length")):
        assert batch.attention_mask is not None
        assert batch.counts.loss_bearing == int(batch.attention_mask.sum()) - 2


@pytest.mark.parametrize("completion", ["yes", "yes</s>"])
def test_instructions_end_with_a_trained_end_token(tmp_path: Path, completion: str) -> None:
    """The model learns to stop; an end that is in the text already is not doubled."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"instruction": "ok?", "output": completion}), encoding="utf-8")
    tokenizer = byte_level()
    (batch,) = batches(
        prepare(JsonlData(source="jsonl", path=str(path)), steps=1, tokenizer=tokenizer, micro_batch=1)
    )

    assert labelled(batch, 0) == [*tokenizer("yes")["input_ids"], tokenizer.eos_token_id]


def test_chat_labels_the_assistants_turns(tmp_path: Path) -> None:
    """With a real chat template, both assistant turns and nothing else bear loss."""
    tokenizer = byte_level()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    turns = [("user", "hi"), ("assistant", "yo"), ("user", "bye"), ("assistant", "so")]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}), encoding="utf-8")
    data = JsonlData(source="jsonl", path=str(path), format="chat", template="chat")
    (batch,) = batches(prepare(data, steps=1, tokenizer=tokenizer, micro_batch=1))

    assert tokenizer.decode(batch.input_ids[0]) == "[user]hi;[assistant]yo;[user]bye;[assistant]so;"
    assert tokenizer.decode(labelled(batch, 0)) == "yo;so;"


def test_steps_times_accumulation_micro_batches() -> None:
    """The shape of what comes back is the training specification's."""
    prepared = prepare(TASK, steps=3, gradient_accumulation=2, micro_batch=4, batching="pad-to-length")

    assert [2, 2, 2] == [len(step) for step in prepared.steps]
    assert {(4, 256)} == {tuple(batch.input_ids.shape) for batch in batches(prepared)}


def test_pad_to_longest_pads_no_more_than_needed() -> None:
    """Each batch is as wide as its longest example."""
    for batch in batches(prepare(TASK)):
        lengths = [256, 256] if batch.attention_mask is None else batch.attention_mask.sum(1).tolist()
        assert batch.input_ids.shape[1] == max(lengths)
        assert batch.counts.computed == 2 * max(lengths)


def test_the_order_is_seeded() -> None:
    """The same seed gives the same batches, another seed others, and the global states are not used."""
    states = (random.getstate(), torch.get_rng_state().tolist())

    assert ids_of(prepare(TASK, seed=1)) == ids_of(prepare(TASK, seed=1))
    assert ids_of(prepare(TASK, seed=1)) != ids_of(prepare(TASK, seed=2))
    assert ids_of(prepare(SyntheticData(), seed=1)) == ids_of(prepare(SyntheticData(), seed=1))
    assert ids_of(prepare(SyntheticData(), seed=1)) != ids_of(prepare(SyntheticData(), seed=2))
    assert states == (random.getstate(), torch.get_rng_state().tolist())


def test_every_example_comes_once_per_epoch(tmp_path: Path) -> None:
    """Data that runs out is gone over again, and the reader is told how often."""
    prepared = prepare(text_file(tmp_path, ["ab", "cd", "ef", "gh"]), steps=5)
    drawn = [tuple(row) for ids in ids_of(prepared) for row in ids]

    assert 4 == len(set(drawn[:4])) == len(set(drawn[4:8]))
    assert ["data-repeated"] == codes(prepared)
    assert "its 4 examples 2.5 times" in prepared.caveats[0].message


def test_truncation_is_counted_and_said(tmp_path: Path) -> None:
    """Raw tokens count what was cut, and the caveat how many examples."""
    prepared = prepare(text_file(tmp_path, ["abcdefgh", "ab"]), steps=1, sequence_length=4)
    (batch,) = batches(prepared)

    assert (batch.counts.raw, batch.counts.non_padding) == (9 + 3, 4 + 3)
    assert ["examples-truncated"] == codes(prepared)
    assert "1 of 2 examples were cut to 4 tokens, losing 5 tokens" in prepared.caveats[0].message


def test_examples_without_anything_to_learn_are_left_out_and_said(tmp_path: Path) -> None:
    """A prompt that fills the sequence would make the loss not a number."""
    path = tmp_path / "rows.jsonl"
    rows = [{"instruction": "x" * 40, "response": "y"}, {"instruction": "x", "response": "y"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = JsonlData(source="jsonl", path=str(path), format="dolly", template="plain")
    prepared = prepare(data, steps=1, sequence_length=16, micro_batch=1)

    assert ["examples-left-out"] == codes(prepared)
    assert prepared.caveats[0].message.startswith("1 of 2 examples have no token to learn")
    with pytest.raises(UsageError, match=r"within 2 tokens; raise training\.sequence_length"):
        prepare(data, sequence_length=2)


def test_a_window_that_misses_the_longest_example_says_so(tmp_path: Path) -> None:
    """With padding to the longest, peak memory depends on having seen it."""
    data = text_file(tmp_path, ["a" * n for n in range(1, 30)])
    short, whole = prepare(data, steps=1, micro_batch=1), prepare(data, steps=29, micro_batch=1)
    fixed = prepare(data, steps=1, micro_batch=1, batching="pad-to-length")

    assert (["longest-example-not-seen"], [], []) == (codes(short), codes(whole), codes(fixed))
    assert "The longest example of the data has 30 tokens" in short.caveats[0].message


@pytest.mark.parametrize(
    ("attention", "shape"),
    [("sdpa", (2, 64)), ("eager", (2, 64)), ("flex_attention", (2, 64)), ("flash_attention_2", (1, 128))],
)
def test_packing_fills_every_row(
    attention: Literal["sdpa", "eager", "flex_attention", "flash_attention_2"], shape: tuple[int, int]
) -> None:
    """No padding, positions that restart, and the shape that the attention needs to see boundaries."""
    prepared = prepare(TASK, steps=3, batching="pack", sequence_length=64, attention=attention)

    for batch in batches(prepared):
        assert batch.position_ids is not None
        assert shape == tuple(batch.input_ids.shape) == tuple(batch.position_ids.shape)
        assert int((batch.position_ids == 0).sum()) >= 2
        assert (128, 128) == (batch.counts.non_padding, batch.counts.computed)
    assert "examples-split" in codes(prepared)


def test_packed_rows_without_labels_are_left_out(tmp_path: Path) -> None:
    """A row that a long prompt fills bears no loss; if there is no other row, that is said."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"instruction": "x" * 30, "response": "yy"}), encoding="utf-8")
    data = JsonlData(source="jsonl", path=str(path), format="dolly", template="plain")
    prepared = prepare(data, steps=2, batching="pack", sequence_length=8, micro_batch=1)

    assert all(batch.counts.loss_bearing > 0 for batch in batches(prepared))
    assert "rows-left-out" in codes(prepared)


def test_packing_that_never_meets_a_label_ends(tmp_path: Path) -> None:
    """A label that always falls first in its row would be waited for forever."""
    turns = [("user", "uu"), ("assistant", "b"), ("user", "u"), ("assistant", "")]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}), encoding="utf-8")
    tokenizer = byte_level()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    data = JsonlData(source="jsonl", path=str(path), format="chat", template="chat")

    with pytest.raises(UsageError, match=r"Rows of 2 tokens hold prompts only; raise training\.sequence_len"):
        prepare(data, tokenizer=tokenizer, batching="pack", sequence_length=2)


def test_synthetic_tokens_fill_the_batch_and_the_vocabulary() -> None:
    """Full length, no padding, every position but the first bears loss, all ids can come up."""
    prepared = prepare(SyntheticData(), steps=20, sequence_length=100, micro_batch=3, tokenizer=None)
    ids = torch.cat([batch.input_ids.flatten() for batch in batches(prepared)])

    assert set(range(300)) == set(ids.tolist())
    assert ["synthetic-data"] == codes(prepared)
    for batch in batches(prepared):
        assert batch.labels.tolist() == batch.input_ids.tolist()
        assert (batch.attention_mask, batch.position_ids) == (None, None)
        assert (300, 300, 297, 300) == tuple(msgspec.to_builtins(batch.counts).values())


def test_synthetic_lengths_that_vary() -> None:
    """From a quarter of the length to the whole, each once, in an order that the seed decides."""
    data = SyntheticData(lengths="vary", attention_mask="padded")

    def lengths(seed: int) -> list[int]:
        steps = prepare(data, 4, sequence_length=400, seed=seed).steps
        assert all(int(batch.counts.non_padding) == batch.input_ids.shape[1] * 7 // 4 for (batch,) in steps)
        return [batch.input_ids.shape[1] for (batch,) in steps]

    assert sorted(lengths(0)) == sorted(lengths(1)) == [100, 200, 300, 400]
    assert lengths(0) == lengths(0) != lengths(1)


@pytest.mark.parametrize(
    ("mask", "tokens", "counts"),
    [("ones", [100, 100, 100], (300, 300, 297, 300)), ("padded", [100, 75, 75], (250, 250, 247, 300))],
)
def test_synthetic_masks(mask: Literal["ones", "padded"], tokens: list[int], counts: tuple[int, ...]) -> None:
    """Ones change nothing but that a mask is there; padding shortens all rows but the first."""
    prepared = prepare(SyntheticData(attention_mask=mask), sequence_length=100, micro_batch=3, tokenizer=None)
    for batch in batches(prepared):
        assert batch.attention_mask is not None
        assert tokens == batch.attention_mask.sum(dim=1).tolist()
        assert torch.equal(batch.labels == IGNORED_LABEL, batch.attention_mask == 0)
        assert counts == tuple(msgspec.to_builtins(batch.counts).values())


def test_a_tokenizer_without_offsets_is_refused() -> None:
    """Where a prompt ends must be known, not guessed."""

    class Slow:
        is_fast = False

    with pytest.raises(
        UnavailableError, match=r"use a model with a fast tokenizer or data\.source synthetic"
    ):
        prepare(TASK, tokenizer=Slow())
