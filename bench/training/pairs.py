"""Pairs of answers to one prompt, the better and the worse, laid out for loops that train on preferences.

A micro-batch has twice the rows: the chosen answers to its prompts, then the rejected ones to the same
prompts. Labels are those of answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from bench.errors import UsageError
from bench.records.records import TokenCounts
from bench.scenario.types import DataSpec, SyntheticData, TrainingSpec
from bench.training.data import (
    IGNORED_LABEL,
    Batch,
    Piece,
    PreparedData,
    pad_id_of,
    pad_rows,
    padding_notes,
    prepared,
    shuffled_forever,
    tokenise,
)
from bench.training.examples import load_pairs


def prepare_pairs(
    data: DataSpec, training: TrainingSpec, tokenizer: Any, vocab_size: int, optimizer_steps: int
) -> PreparedData:
    """Return micro-batches of pairs; takes and raises what ``prepare_batches`` does."""
    size = training.gradient_accumulation
    count = optimizer_steps * size
    if isinstance(data, SyntheticData):
        batches = list(_synthetic(training, vocab_size, count))
        notes = {"synthetic-data": "Random tokens: the loss and accuracy say nothing."}
    else:
        pieces = tokenise(load_pairs(data), tokenizer)
        batches, notes = _lay_out(pieces, training, pad_id_of(tokenizer), count)
    return prepared(batches, size, notes)


def _synthetic(training: TrainingSpec, vocab_size: int, count: int) -> Iterator[Batch]:
    """Yield random tokens that fill every row, of which the first half is the prompt of both answers."""
    generator = torch.Generator().manual_seed(training.seed)
    pairs, length = training.micro_batch, training.sequence_length
    prompt = length // 2
    for _ in range(count):
        ids = torch.randint(vocab_size, (2 * pairs, length), generator=generator)
        ids[pairs:, :prompt] = ids[:pairs, :prompt]
        labels = ids.clone()
        labels[:, :prompt] = IGNORED_LABEL
        bearing = 2 * pairs * (length - max(1, prompt))
        counts = TokenCounts(
            raw=ids.numel(), non_padding=ids.numel(), loss_bearing=bearing, computed=ids.numel()
        )
        yield Batch(input_ids=ids, attention_mask=None, labels=labels, position_ids=None, counts=counts)


def _lay_out(
    pieces: Sequence[Piece], training: TrainingSpec, pad_id: int, count: int
) -> tuple[list[Batch], dict[str, str]]:
    """Draw pairs in shuffled order and put them into ``count`` micro-batches; what is too long is cut."""
    length, size = training.sequence_length, training.micro_batch
    cut = [replace(piece, ids=piece.ids[:length], labels=piece.labels[:length]) for piece in pieces]
    pairs = list(zip(cut[::2], cut[1::2], strict=True))
    usable = [pair for pair in pairs if all(one.loss_bearing for one in pair)]
    if not usable:
        raise UsageError(f"No pair of answers begins within {length} tokens; raise training.sequence_length.")
    notes = {}
    if left_out := len(pairs) - len(usable):
        notes["examples-left-out"] = (
            f"{left_out} of {len(pairs)} pairs do not reach their answers within the sequence length and "
            "were left out."
        )
    drawn: list[tuple[Piece, Piece]] = []
    single = list(islice(shuffled_forever(usable, training.seed, drawn), count * size))
    groups = [
        [pair[side] for side in (0, 1) for pair in single[start : start + size]]
        for start in range(0, count * size, size)
    ]
    seen, everything = ([piece for pair in some for piece in pair] for some in (single, usable))
    notes |= padding_notes(seen, everything, training)
    if len(drawn) > len(usable):
        times = f"{len(drawn) / len(usable):.1f} times"
        notes["data-repeated"] = f"The window goes over its {len(usable)} pairs {times}."
    fixed = length if training.batching == "pad-to-length" else None
    return [pad_rows(one, fixed or max(len(row.ids) for row in one), pad_id) for one in groups], notes
