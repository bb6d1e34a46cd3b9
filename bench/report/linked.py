"""Sentences that lead to rows: what a page makes links of, and a page without anchors plain text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RowLink:
    """The name of a cell, which leads to its row."""

    text: str
    key: str


Pieces = tuple[str | RowLink, ...]


@dataclass(frozen=True)
class Sentence:
    """What a sentence is about, and its pieces in order."""

    about: str
    pieces: Pieces

    @property
    def text(self) -> str:
        """Return the sentence without links."""
        return "".join(piece.text if isinstance(piece, RowLink) else piece for piece in self.pieces)


def listed(links: Sequence[RowLink], most: int | None = None) -> Iterator[str | RowLink]:
    """Yield links as a list with *and*; beyond ``most`` they are counted only."""
    shown = links if most is None or len(links) <= most else links[:most]
    beyond = len(links) - len(shown)
    for index, link in enumerate(shown):
        if index:
            yield " and " if index == len(shown) - 1 and not beyond else ", "
        yield link
    if beyond:
        yield f" and {beyond} more"
