"""Sentences that link to rows, as templates write them, for Markdown, terminal and HTML alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from bench.report.text import templates, told, visible


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


def said(template: str, link_to: Callable[[Any], RowLink], **values: object) -> list[Sentence]:
    """Return the sentences of a template, which calls ``sentence`` with what each is about.

    ``link`` names a row and leads to it, ``links`` several as a list. The end of a line is a blank, but for
    none before punctuation.
    """
    mark = token_hex(8)  # which nobody's text can hold
    found: list[Sentence] = []
    linked: list[RowLink] = []

    def link(row: Any) -> str:
        linked.append(link_to(row))
        return f"{mark}{len(linked) - 1}{mark}"

    def links(rows: Sequence[Any], most: int | None = None) -> str:
        shown = [*map(link, rows[:most])]
        if len(shown) < len(rows):
            return f"{', '.join(shown)} and {len(rows) - len(shown)} more"
        return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))

    def sentence(about: str, caller: Callable[[], str]) -> str:
        texts = told(caller()).split(mark)
        pieces = [linked[int(text)] if place % 2 else text for place, text in enumerate(texts)]
        found.append(Sentence(about, tuple(piece for piece in pieces if piece)))
        return ""

    templates(visible).get_template(template).render(
        values, link=link, links=links, sentence=sentence, told=told
    )
    return found
