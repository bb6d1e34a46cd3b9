"""Everything a window is fed, made before its clock starts: tokens, labels, batches, and their caveats.

The order is a shuffle seeded by the training seed; nothing here touches a global random state.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch

from bench.errors import UnavailableError, UsageError
from bench.records.records import Caveat, TokenCounts
from bench.scenario.types import DataSpec, SyntheticData, TrainingSpec
from bench.training.batches import IGNORED_LABEL, Batch, Piece, fill_rows, pack_rows, pad_rows
from bench.training.examples import Example, load_examples

__all__ = ["Batch", "PreparedData", "prepare_batches"]

_TOKENISED_AT_ONCE = 1024  # bounds the memory that offsets take
_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """The micro-batches of each optimizer step, and what a reader must know about them."""

    steps: tuple[tuple[Batch, ...], ...]
    caveats: tuple[Caveat, ...]


def prepare_batches(
    data: DataSpec,
    training: TrainingSpec,
    tokenizer: Any,
    vocab_size: int,
    optimizer_steps: int,
) -> PreparedData:
    """Return ``optimizer_steps`` times ``gradient_accumulation`` micro-batches, on the CPU.

    ``vocab_size`` bounds the ids of synthetic tokens; a tokenizer is needed for all other data.
    Raises ``UsageError`` for data that is wrong or leaves nothing to learn, ``UnavailableError`` for
    a hub that cannot be reached.
    """
    count = optimizer_steps * training.gradient_accumulation
    if isinstance(data, SyntheticData):
        batches = list(_synthetic_batches(data, training, vocab_size, count))
        caveats = [Caveat(code="synthetic-data", message="Random tokens: the loss and accuracy say nothing.")]
    else:
        examples = load_examples(data, tokenizer)
        pieces = _tokenise(examples, tokenizer)
        batches, caveats = _lay_out(pieces, training, _pad_id(tokenizer), count)
    size = training.gradient_accumulation
    steps = tuple(tuple(batches[start : start + size]) for start in range(0, count, size))
    return PreparedData(steps=steps, caveats=tuple(caveats))


def _synthetic_batches(
    data: SyntheticData, training: TrainingSpec, vocab_size: int, count: int
) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(training.seed)
    rows, length = training.micro_batch, training.sequence_length
    mask = torch.ones((rows, length), dtype=torch.int64)
    if data.attention_mask == "padded":
        mask[1:, length * 3 // 4 :] = 0
    tokens = int(mask.sum())
    counts = TokenCounts(
        raw=tokens, non_padding=tokens, loss_bearing=int(mask[:, 1:].sum()), computed=rows * length
    )
    for _ in range(count):
        ids = torch.randint(vocab_size, (rows, length), generator=generator)
        yield Batch(
            input_ids=ids,
            attention_mask=None if data.attention_mask == "none" else mask,
            labels=ids.masked_fill(mask == 0, IGNORED_LABEL),
            position_ids=None,
            counts=counts,
        )


def _tokenise(examples: Sequence[Example], tokenizer: Any) -> list[Piece]:
    """Tokenise each example as one text, and label the tokens that reach into a trained segment.

    One text, since tokens of a prompt and a completion made apart may not be those of the whole, which
    is what evaluation sees.
    """
    if not tokenizer.is_fast:
        raise UnavailableError(
            "The model's tokenizer does not tell where its tokens lie in the text, so the end of a prompt "
            "is unknown; use a model with a fast tokenizer or data.source synthetic."
        )
    pieces = []
    for start in range(0, len(examples), _TOKENISED_AT_ONCE):
        chunk = examples[start : start + _TOKENISED_AT_ONCE]
        encoded = tokenizer(
            [example.text for example in chunk],
            add_special_tokens=chunk[0].special_tokens,  # the same for all examples of one source
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for example, ids, offsets in zip(chunk, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            pieces.append(_piece(example, ids, offsets, tokenizer.eos_token_id))
    return pieces


def _piece(example: Example, ids: list[int], offsets: list[tuple[int, int]], end_id: int | None) -> Piece:
    """Label the tokens of trained segments; tokens the tokenizer added lie at (0, 0) and stay unlabelled."""
    trained = [False] * len(ids)
    position = 0
    for segment in example.segments:
        begin, position = position, position + len(segment.text)
        if segment.trained:
            for index, (start, end) in enumerate(offsets):
                trained[index] |= start < position and end > begin
    if example.append_end and end_id is not None:
        if ids and ids[-1] == end_id:
            trained[-1] = True
        else:
            ids, trained = [*ids, end_id], [*trained, True]
    labels = tuple(token if learn else IGNORED_LABEL for token, learn in zip(ids, trained, strict=True))
    return Piece(ids=tuple(ids), labels=labels, raw_tokens=len(ids))


def _lay_out(
    pieces: Sequence[Piece], training: TrainingSpec, pad_id: int, count: int
) -> tuple[list[Batch], list[Caveat]]:
    """Draw examples in shuffled order, put them in rows, and rows in ``count`` micro-batches."""
    packed = training.batching == "pack"
    length = training.sequence_length
    cut = list(pieces) if packed else [_truncated(piece, length) for piece in pieces]
    usable = [piece for piece in cut if piece.loss_bearing > 0]
    if not usable:
        raise UsageError(
            f"No example has a token to learn within {length} tokens; raise training.sequence_length "
            "or set data.train_on to all."
        )
    drawn: list[Piece] = []
    stream = _shuffled_forever(usable, training.seed, drawn)
    size = training.micro_batch
    if packed:
        rows, left_out = _packed_rows(stream, usable, length, count * size)
        flatten = training.attention == "flash_attention_2"
        batches = [pack_rows(group, flatten=flatten) for group in _groups(rows, size)]
        caveats = _packing_caveats(rows, left_out)
    else:
        single = list(islice(stream, count * size))
        batches = [pad_rows(group, _width(group, training), pad_id) for group in _groups(single, size)]
        caveats = _padding_caveats(single, usable, training)
    return batches, [*_selection_caveats(pieces, usable, drawn), *caveats]


def _packed_rows(
    stream: Iterator[Piece], usable: Sequence[Piece], length: int, count: int
) -> tuple[list[list[Piece]], int]:
    """Return ``count`` full rows and how many were left out because nothing in them bears loss.

    The mean loss of such a row is not a number. Raises ``UsageError`` if an epoch brings nothing else.
    """
    rows_per_epoch = 1 + sum(len(piece.ids) for piece in usable) // length
    rows: list[list[Piece]] = []
    left_out = in_sequence = 0
    for row in fill_rows(stream, length):
        if any(piece.loss_bearing for piece in row):
            rows.append(row)
            in_sequence = 0
        else:
            left_out += 1
            in_sequence += 1
        if len(rows) == count:
            break
        if in_sequence > rows_per_epoch:
            raise UsageError(
                f"Rows of {length} tokens hold prompts only; raise training.sequence_length "
                "or set data.train_on to all."
            )
    return rows, left_out


def _width(group: Sequence[Piece], training: TrainingSpec) -> int:
    if training.batching == "pad-to-length":
        return training.sequence_length
    return max(len(piece.ids) for piece in group)


def _truncated(piece: Piece, length: int) -> Piece:
    return Piece(ids=piece.ids[:length], labels=piece.labels[:length], raw_tokens=piece.raw_tokens)


def _shuffled_forever(pieces: Sequence[Piece], seed: int, drawn: list[Piece]) -> Iterator[Piece]:
    """Yield every piece once per epoch, each epoch in a new order, and note each in ``drawn``."""
    order = list(pieces)
    shuffler = random.Random(seed)  # noqa: S311 - an order, not a secret
    while True:
        shuffler.shuffle(order)
        for piece in order:
            drawn.append(piece)
            yield piece


def _groups(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _pad_id(tokenizer: Any) -> int:
    """Return the id that fills padding; masked and unlabelled, so any will do."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return int(tokenizer.eos_token_id or 0)


def _selection_caveats(
    pieces: Sequence[Piece], usable: Sequence[Piece], drawn: Sequence[Piece]
) -> Iterator[Caveat]:
    if len(usable) < len(pieces):
        yield Caveat(
            code="examples-left-out",
            message=f"{len(pieces) - len(usable)} of {len(pieces)} examples have no token to learn within "
            "the sequence length and were left out.",
        )
    if len(drawn) > len(usable):
        yield Caveat(
            code="data-repeated",
            message=f"The window goes over its {len(usable)} examples {len(drawn) / len(usable):.1f} times.",
        )


def _packing_caveats(rows: Sequence[Sequence[Piece]], left_out: int) -> Iterator[Caveat]:
    continued = sum(piece.continued for row in rows for piece in row)
    if continued:
        yield Caveat(
            code="examples-split",
            message=f"{continued} packed rows begin in the middle of an example.",
        )
    if left_out:
        yield Caveat(
            code="rows-left-out",
            message=f"{left_out} packed rows held no token to learn and were left out.",
        )


def _padding_caveats(
    single: Sequence[Piece], usable: Sequence[Piece], training: TrainingSpec
) -> Iterator[Caveat]:
    truncated = [piece for piece in single if piece.raw_tokens > len(piece.ids)]
    if truncated:
        lost = sum(piece.raw_tokens - len(piece.ids) for piece in truncated)
        yield Caveat(
            code="examples-truncated",
            message=f"{len(truncated)} of {len(single)} examples were cut to {training.sequence_length} "
            f"tokens, losing {lost} tokens.",
        )
    seen, longest = (max(len(piece.ids) for piece in group) for group in (single, usable))
    if training.batching == "pad-to-longest" and seen < longest:
        yield Caveat(
            code="longest-example-not-seen",
            message=f"The longest example of the data has {longest} tokens, the longest of this window "
            f"{seen}: peak memory here does not bound training on all the data.",
        )
