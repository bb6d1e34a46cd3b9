"""What a window is fed, made before its clock starts: tokens, labels, batches, and their caveats.

Two layouts: one sequence per row with padding to its right, or rows packed full of sequences. The order is a
shuffle seeded by the training seed; nothing here touches a global random state.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, TypeVar

import torch

from bench.errors import UnavailableError, UsageError
from bench.records.readings import Caveat
from bench.records.records import TokenCounts
from bench.scenario.types import DataSpec, SyntheticData, TrainingSpec
from bench.training.rows.examples import Example, load_examples

IGNORED_LABEL = -100  # torch.nn.functional.cross_entropy's default ignore_index
X = TypeVar("X")
_TOKENISED_AT_ONCE = 1024  # bounds the memory that offsets take


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One example, or the part of one that a row holds.

    ``raw_tokens`` counts it before truncation; ``continued`` says that its beginning is in the row before.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    raw_tokens: int
    continued: bool = False

    @property
    def loss_bearing(self) -> int:
        """Positions with a label; the first has none before it that could predict it."""
        return sum(label != IGNORED_LABEL for label in self.labels[1:])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One forward pass: CPU int64 tensors of shape (rows, positions), not shifted, and their counts.

    ``attention_mask`` is None where nothing is padded, ``position_ids`` where they just count up.
    Packed rows carry no mask: transformers reads the boundaries from positions that start again at 0,
    which it does only if the model is called with ``use_cache=False``.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    labels: torch.Tensor
    position_ids: torch.Tensor | None
    counts: TokenCounts

    def inputs_on(self, device: torch.device | str) -> dict[str, torch.Tensor]:
        """Return the model's keyword arguments, labels included, copied to a device."""
        names = ("input_ids", "attention_mask", "labels", "position_ids")
        tensors = ((name, getattr(self, name)) for name in names)
        return {name: tensor.to(device) for name, tensor in tensors if tensor is not None}


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
    *,
    pairs: bool = False,
) -> PreparedData:
    """Return ``optimizer_steps`` times ``gradient_accumulation`` micro-batches, on the CPU.

    ``vocab_size`` bounds the ids of synthetic tokens; a tokenizer is needed for all other data. Of ``pairs``
    a micro-batch has twice the rows: the chosen answers to its prompts, then the rejected ones. Raises
    ``UsageError`` for data that is wrong or leaves nothing to learn, ``UnavailableError`` for a hub that
    cannot be reached.
    """
    size = training.gradient_accumulation
    count = optimizer_steps * size
    if isinstance(data, SyntheticData):
        batches = list(_synthetic_batches(data, training, vocab_size, count, pairs=pairs))
        notes = {"synthetic-data": "Random tokens: the loss and accuracy say nothing."}
    else:
        loaded = load_examples(data, tokenizer, pairs=pairs)
        pieces = tokenise(loaded.examples, tokenizer)
        drawn = list(zip(pieces[::2], pieces[1::2], strict=True)) if pairs else [(one,) for one in pieces]
        given = tokenizer.pad_token_id  # masked and unlabelled, so any will do
        pad_id = int((tokenizer.eos_token_id or 0) if given is None else given)
        batches, notes = _lay_out(drawn, training, pad_id, count)
        notes = loaded.notes | notes
    return PreparedData(
        steps=tuple(tuple(batches[start : start + size]) for start in range(0, len(batches), size)),
        caveats=tuple(Caveat(code=code, message=message) for code, message in notes.items()),
    )


def _synthetic_batches(
    data: SyntheticData, training: TrainingSpec, vocab_size: int, count: int, *, pairs: bool
) -> Iterator[Batch]:
    """Yield random tokens that fill every row; of pairs the first half is the prompt of both answers."""
    generator = torch.Generator().manual_seed(training.seed)
    rows, longest = training.micro_batch * (1 + pairs), training.sequence_length
    lengths = spread_lengths(longest, count) if data.lengths == "vary" else count * [longest]
    random.Random(training.seed).shuffle(lengths)
    for length in lengths:
        mask = torch.ones((rows, length), dtype=torch.int64)
        if data.attention_mask == "padded":
            mask[1:, length * 3 // 4 :] = 0
        ids, learnt = torch.randint(vocab_size, (rows, length), generator=generator), mask.clone()
        if pairs:
            ids[rows // 2 :, : length // 2] = ids[: rows // 2, : length // 2]
            learnt[:, : length // 2] = 0
        tokens, bearing = int(mask.sum()), int(learnt[:, 1:].sum())
        counts = TokenCounts(raw=tokens, non_padding=tokens, loss_bearing=bearing, computed=rows * length)
        yield Batch(
            input_ids=ids,
            attention_mask=None if data.attention_mask == "none" else mask,
            labels=ids.masked_fill(learnt == 0, IGNORED_LABEL),
            position_ids=None,
            counts=counts,
        )


def spread_lengths(longest: int, count: int) -> list[int]:
    """Return so many lengths from the longest down to a quarter of it, as far apart as each other.

    >>> spread_lengths(400, 4)
    [400, 300, 200, 100]
    """
    step = (longest - max(2, longest // 4)) / max(1, count - 1)
    return [round(longest - index * step) for index in range(count)]


def tokenise(examples: Sequence[Example], tokenizer: Any) -> list[Piece]:
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
    items: Sequence[tuple[Piece, ...]], training: TrainingSpec, pad_id: int, count: int
) -> tuple[list[Batch], dict[str, str]]:
    """Draw examples or pairs in shuffled order, put them in rows, and rows in ``count`` micro-batches."""
    length, size, packed = training.sequence_length, training.micro_batch, training.batching == "pack"
    end = None if packed else length
    cut = (tuple(replace(one, ids=one.ids[:end], labels=one.labels[:end]) for one in item) for item in items)
    usable = [item for item in cut if all(one.loss_bearing for one in item)]
    pairs = len(items[0]) > 1
    what, lacking = (
        ("pairs", "do not reach their answers") if pairs else ("examples", "have no token to learn")
    )
    if not usable:
        none = "No pair of answers begins" if pairs else "No example has a token to learn"
        more = "" if pairs else " or set data.train_on to all"
        raise UsageError(f"{none} within {length} tokens; raise training.sequence_length{more}.")
    notes = {}
    if left_out := len(items) - len(usable):
        notes["examples-left-out"] = (
            f"{left_out} of {len(items)} {what} {lacking} within the sequence length and were left out."
        )
    drawn: list[tuple[Piece, ...]] = []
    stream = shuffled_forever(usable, training.seed, drawn)
    starts = range(0, count * size, size)
    if packed:
        rows, laid_out = _packed_rows(stream, usable, length, count * size)
        flatten = training.attention == "flash_attention_2"
        batches = [pack_rows(rows[start : start + size], flatten=flatten) for start in starts]
    else:
        single = list(islice(stream, count * size))
        laid_out = _padding_notes(list(chain(*single)), list(chain(*usable)), training)
        groups = [list(chain(*zip(*single[start : start + size], strict=True))) for start in starts]
        fixed = length if training.batching == "pad-to-length" else None
        batches = [pad_rows(group, fixed or max(len(one.ids) for one in group), pad_id) for group in groups]
    if len(drawn) > len(usable):
        times = f"{len(drawn) / len(usable):.1f} times"
        notes["data-repeated"] = f"The window goes over its {len(usable)} {what} {times}."
    return batches, notes | laid_out


def _packed_rows(
    stream: Iterator[tuple[Piece, ...]], usable: Sequence[tuple[Piece, ...]], length: int, count: int
) -> tuple[list[list[Piece]], dict[str, str]]:
    """Return ``count`` full rows, without those in which nothing bears loss: its mean would be no number.

    Raises ``UsageError`` if an epoch brings nothing else.
    """
    rows_per_epoch = 1 + sum(len(piece.ids) for piece in chain(*usable)) // length
    rows: list[list[Piece]] = []
    left_out = in_sequence = 0
    for row in fill_rows(chain.from_iterable(stream), length):
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
    notes = {}
    if continued := sum(piece.continued for row in rows for piece in row):
        notes["examples-split"] = f"{continued} packed rows begin in the middle of an example."
    if left_out:
        notes["rows-left-out"] = f"{left_out} packed rows held no token to learn and were left out."
    return rows, notes


def shuffled_forever(pieces: Sequence[X], seed: int, drawn: list[X]) -> Iterator[X]:
    """Yield every piece once per epoch, each epoch in a new order, and note each in ``drawn``."""
    order = list(pieces)
    shuffler = random.Random(seed)
    while True:
        shuffler.shuffle(order)
        for piece in order:
            drawn.append(piece)
            yield piece


def _padding_notes(
    single: Sequence[Piece], usable: Sequence[Piece], training: TrainingSpec
) -> dict[str, str]:
    """Return what was cut, and whether the longest that the data has was seen."""
    notes = {}
    if lost := [more for piece in single if (more := piece.raw_tokens - len(piece.ids))]:
        notes["examples-truncated"] = (
            f"{len(lost)} of {len(single)} examples were cut to {training.sequence_length} tokens, losing "
            f"{sum(lost)} tokens."
        )
    seen, longest = (max(len(piece.ids) for piece in group) for group in (single, usable))
    if training.batching == "pad-to-longest" and seen < longest:
        notes["longest-example-not-seen"] = (
            f"The longest example of the data has {longest} tokens, the longest of this window {seen}: "
            "peak memory here does not bound training on all the data."
        )
    return notes


def pad_rows(rows: Sequence[Piece], width: int, pad_id: int) -> Batch:
    """Put each piece in a row of its own, padded on the right to ``width`` positions."""

    def padded(values: Iterable[tuple[int, ...]], filler: int) -> torch.Tensor:
        return torch.tensor([[*row, *[filler] * (width - len(row))] for row in values])

    full = all(len(row.ids) == width for row in rows)
    return Batch(
        input_ids=padded((row.ids for row in rows), pad_id),
        attention_mask=None if full else padded(((1,) * len(row.ids) for row in rows), 0),
        labels=padded((row.labels for row in rows), IGNORED_LABEL),
        position_ids=None,
        counts=_counts(rows, len(rows) * width),
    )


def pack_rows(rows: Sequence[Sequence[Piece]], *, flatten: bool) -> Batch:
    """Lay out rows that their pieces fill to the same length; positions start again with each piece.

    ``flatten`` joins the rows into one, which FlashAttention 2 needs in order to see the boundaries.
    """
    pieces = [piece for row in rows for piece in row]
    shape = (1, -1) if flatten else (len(rows), -1)
    # What comes first in a piece follows from nothing in it: unlabelled, or the loss would cross pieces.
    labels = [label for piece in pieces for label in (IGNORED_LABEL, *piece.labels[1:])]
    ids = [token for piece in pieces for token in piece.ids]
    positions = [position for piece in pieces for position in range(len(piece.ids))]
    return Batch(
        input_ids=torch.tensor(ids).view(shape),
        attention_mask=None,
        labels=torch.tensor(labels).view(shape),
        position_ids=torch.tensor(positions).view(shape),
        counts=_counts(pieces, len(ids)),
    )


def fill_rows(pieces: Iterator[Piece], length: int) -> Iterator[list[Piece]]:
    """Cut an endless stream of pieces into rows of exactly ``length`` tokens; a piece may span rows."""
    row: list[Piece] = []
    free = length
    for piece in pieces:
        start = 0
        while start < len(piece.ids):
            ids, labels = piece.ids[start : start + free], piece.labels[start : start + free]
            row.append(Piece(ids=ids, labels=labels, raw_tokens=len(ids), continued=start > 0))
            start += len(ids)
            free -= len(ids)
            if not free:
                yield row
                row, free = [], length


def _counts(pieces: Sequence[Piece], computed: int) -> TokenCounts:
    return TokenCounts(
        raw=sum(piece.raw_tokens for piece in pieces),
        non_padding=sum(len(piece.ids) for piece in pieces),
        loss_bearing=sum(piece.loss_bearing for piece in pieces),
        computed=computed,
    )
