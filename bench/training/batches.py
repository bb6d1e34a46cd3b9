"""Token sequences laid out as the tensors of one forward pass, with their four token counts.

Two layouts: one sequence per row with padding to its right, or rows packed full of sequences. No
tokenizer and no randomness here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from bench.records.records import TokenCounts

IGNORED_LABEL = -100  # torch.nn.functional.cross_entropy's default ignore_index


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
        tensors = {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "labels": self.labels,
            "position_ids": self.position_ids,
        }
        return {name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None}


def pad_rows(rows: Sequence[Piece], width: int, pad_id: int) -> Batch:
    """Put each piece in a row of its own, padded on the right to ``width`` positions."""
    ids = torch.full((len(rows), width), pad_id)
    labels = torch.full((len(rows), width), IGNORED_LABEL)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for index, row in enumerate(rows):
        length = len(row.ids)
        ids[index, :length] = torch.tensor(row.ids)
        labels[index, :length] = torch.tensor(row.labels)
        mask[index, :length] = 1
    padded = any(len(row.ids) < width for row in rows)
    return Batch(
        input_ids=ids,
        attention_mask=mask if padded else None,
        labels=labels,
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
        rest = piece
        while len(rest.ids) >= free:
            taken, left = _split(rest, free)
            yield [*row, taken]
            row, free = [], length
            if left is None:
                break
            rest = left
        else:
            row.append(rest)
            free -= len(rest.ids)


def _split(piece: Piece, at: int) -> tuple[Piece, Piece | None]:
    """Cut a piece in two; the second is None if nothing is left."""
    if len(piece.ids) == at:
        return piece, None
    first = replace(piece, ids=piece.ids[:at], labels=piece.labels[:at], raw_tokens=at)
    ids, labels = piece.ids[at:], piece.labels[at:]
    return first, Piece(ids=ids, labels=labels, raw_tokens=piece.raw_tokens - at, continued=True)


def _counts(pieces: Sequence[Piece], computed: int) -> TokenCounts:
    return TokenCounts(
        raw=sum(piece.raw_tokens for piece in pieces),
        non_padding=sum(len(piece.ids) for piece in pieces),
        loss_bearing=sum(piece.loss_bearing for piece in pieces),
        computed=computed,
    )
