"""How a number, a sentence or a stranger's text is written: units, digits, escapes, links to rows.

Nothing is computed but the unit.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from secrets import token_hex
from typing import TYPE_CHECKING, Any, TypeVar

from bench.errors import counted, percent
from bench.io import own_toml
from bench.metrics import GIB, MIB, Metric

if TYPE_CHECKING:
    from jinja2 import Environment

R = TypeVar("R")
K = TypeVar("K")
V = TypeVar("V")
NOT_MEASURED = "n/a"
NOT_APPLICABLE = "–"  # noqa: RUF001 - a dash is what a table shows for *does not apply*

# Control characters, and the marks that reverse or hide text (Unicode TR 36), have no place in a report.
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]+")
# What Markdown reads as more than text. An underscore inside a word is plain text to GitHub; elsewhere it can
# begin emphasis.
_MARKED = re.compile(r"[\\`*\[\]|~$<&>@]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|://|www\.")
# The word joiner is invisible and keeps a name from becoming a mention, an address from becoming a link.
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "@\u2060", "://": ":\\//", "www.": "www\\."}


_LEVELS = (0.01, 0.05)  # of significance, the first alone and the second of several comparisons together
_TEN_MILLISECONDS_NS = 1e7
_SHORT_UNITS = (("ms", 1e6), ("µs", 1e3))


@dataclass(frozen=True, kw_only=True)
class MemoryUnit:
    """One unit for a whole report, so that its columns can be read down."""

    name: str
    size_bytes: int
    digits: int

    def show(self, size_bytes: int | None) -> str:
        if size_bytes is None:
            return NOT_MEASURED
        return f"{size_bytes / self.size_bytes:,.{self.digits}f} {self.name}"

    def scaled(self, size_bytes: int) -> float:
        """Return bytes in this unit, for an axis."""
        return size_bytes / self.size_bytes

    def figure(self, size_bytes: int | None) -> str:
        """Write bytes in this unit without naming it, for a table that names it once."""
        return self.show(size_bytes).removesuffix(f" {self.name}")

    def span(self, low_bytes: int | None, high_bytes: int | None) -> str:
        """Write two sizes as a range, or one where both look the same."""
        low, high = self.show(low_bytes), self.show(high_bytes)
        return high if low == high else f"{self.figure(low_bytes)} to {high}"


MEBIBYTES = MemoryUnit(name="MiB", size_bytes=MIB, digits=0)
SMALL_MEBIBYTES = MemoryUnit(name="MiB", size_bytes=MIB, digits=2)
GIBIBYTES = MemoryUnit(name="GiB", size_bytes=GIB, digits=2)


def unit_for(sizes_bytes: Sequence[int], *, on_gpu: bool) -> MemoryUnit:
    """Return GiB for GPUs and large models, else MiB: one unit for a whole report."""
    if on_gpu or max(sizes_bytes, default=0) >= 16 * GIB:
        return GIBIBYTES
    return SMALL_MEBIBYTES if min(sizes_bytes, default=GIB) < 100 * MIB else MEBIBYTES


def texts(*subject: str) -> Mapping[str, str]:
    """Return what ``templates/texts.toml`` says on a subject; {places} are left for ``str.format``."""
    found = load_toml("texts.toml")
    for name in subject:
        found = found[name]
    return found


@cache
def load_toml(name: str) -> dict[str, Any]:
    """Return one of our own files of texts or colours."""
    return own_toml("bench.report", "templates", name)


def share(value: float | None, digits: int = 1) -> str:
    """Write a share as a percentage with a true minus sign."""
    if value is None:
        return NOT_MEASURED
    return _minus(percent(value, digits))


def points(difference: float, *, sign: bool = False) -> str:
    """Write a difference of two shares in percentage points."""
    plus = "+" if sign and difference > 0 else ""
    return f"{plus}{share(difference).removesuffix(' %')} points"


def small_share(value: float | None) -> str:
    """Write a share that may be tiny with three significant digits."""
    if value is None:
        return NOT_MEASURED
    return f"{value * 100:.3g} %"


def seconds(time_ns: float | None) -> str:
    """Write nanoseconds as seconds with two decimals; below 10 ms as ``duration`` does."""
    if time_ns is None or 0 < abs(time_ns) < _TEN_MILLISECONDS_NS:
        return duration(time_ns)
    return _minus(f"{time_ns / 1e9:,.2f} s")


def duration(time_ns: float | None) -> str:
    """Write nanoseconds with three significant digits in the unit that suits them: ns, µs, ms or s."""
    if time_ns is None:
        return NOT_MEASURED
    if time_ns == 0 or not math.isfinite(time_ns):
        return f"{time_ns:g} s"
    rounded_ns = float(f"{time_ns:.3g}")  # before the unit is chosen: 999.9 µs is 1.00 ms
    if abs(rounded_ns) >= 1e9:  # noqa: PLR2004 - a second
        return _minus(f"{time_ns / 1e9:,.2f} s")
    unit, unit_ns = next((each for each in _SHORT_UNITS if abs(rounded_ns) >= each[1]), ("ns", 1.0))
    return f"{significant(rounded_ns / unit_ns)} {unit}"


def operations(count: float | None) -> str:
    """Write floating-point operations in the unit that suits them."""
    if count is None:
        return NOT_MEASURED
    unit, size = ("GFLOP", 1e9) if count >= 1e8 else ("MFLOP", 1e6)  # noqa: PLR2004 - a tenth of the unit
    return f"{significant(count / size)} {unit}"


def significant(value: float | None) -> str:
    """Write a number with three significant digits, and no exponent below a million."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return _minus(f"{value:,.{digits}f}")


def p_value(value: float) -> str:
    """Write a p-value, the very small ones as a bound; one below 0.01 or 0.05 never looks like it."""
    if value < 0.001:  # noqa: PLR2004 - the usual bound
        return "p < 0.001"
    level = next((level for level in _LEVELS if value < level <= round(value, 3)), None)
    return f"p = {value:.3f}" if level is None else f"p = {min(value, level - 1e-4):.4f}"


NAMED_UNITS: Mapping[str, Callable[[float], str]] = {
    "bytes": lambda value: SMALL_MEBIBYTES.show(round(value)),
    "bytes/step": lambda value: f"{round(value):,} bytes/step",
    "ns": duration,
    "share": share,
}
"""How a metric's value is written, unit included, by its unit."""


def metric_value(metric: Metric, value: float | None) -> str:
    """Write the value of a metric; a unit that is not in ``NAMED_UNITS`` is left to its title."""
    if value is None:
        return NOT_MEASURED
    exact = "{:,.0f}".format if metric.kind == "deterministic" else significant
    return NAMED_UNITS.get(metric.unit, exact)(value)


def grouped(pairs: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    """Return the values of each key, in order of appearance."""
    found: dict[K, list[V]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def words(name: str) -> str:
    return name.replace("_", " ")


def plain(text: str) -> str:
    """Return text on one line without control characters, safe for a terminal."""
    return " ".join(visible(text).split())


def visible(text: str) -> str:
    """Return text with a blank for each run of control characters and invisible ones."""
    return text if text.isprintable() else _INVISIBLE.sub(" ", text)  # most is, and it is asked in no time


@lru_cache(maxsize=10_000)  # the cells of large tables are seldom new
def markdown(text: str) -> str:
    """Return text that GitHub's Markdown shows as it is: no table cell, tag, link or mention comes of it."""
    return _MARKED.sub(lambda found: _ESCAPES.get(found[0]) or f"\\{found[0]}", plain(text))


def _minus(text: str) -> str:
    """Write a leading hyphen as a minus sign, so that a column of numbers lines up; zero has no sign."""
    if not text.startswith("-"):
        return text
    return f"\u2212{text[1:]}" if re.search("[1-9]|inf", text) else text[1:]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A header and rows of plain text, not yet escaped; ``left`` columns are words, the others numbers.

    ``constants`` are title and value of columns that it need not have.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    constants: tuple[tuple[str, str], ...] = ()


def table_of(rows: Iterable[R], *columns: tuple[str, Callable[[R], str]], left: int = 1) -> Table:
    """Return a table from the title of each column and how it shows a row."""
    shown = tuple(tuple(show(row) for _, show in columns) for row in rows)
    return Table(header=tuple(title for title, _ in columns), rows=shown, left=left)


def markdown_table(table: Table) -> str:
    """Return a GitHub-flavoured Markdown table, every cell escaped."""
    ruler = [":---" if index < table.left else "---:" for index in range(len(table.header))]
    lines = [[markdown(name) for name in table.header], ruler]
    lines.extend([markdown(cell) for cell in line] for line in table.rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(lines: Iterable[str]) -> str:
    """Return a Markdown list of lines that are Markdown already."""
    return "\n".join(f"- {line}" for line in lines)


class Written(str):
    """Markdown that a template shows as it is; everything else it shows is escaped."""

    __slots__ = ()


@cache
def templates(escape: Callable[[str], str]) -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(  # noqa: S701 - finalize escapes what is shown, or who shows notes does
        loader=PackageLoader("bench.report", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Written) else escape(str(value)),
    )
    environment.filters.update(written=Written, table=lambda table: Written(markdown_table(table)))
    known = (counted, operator, p_value, points, share, significant, words)
    environment.globals.update({write.__name__: write for write in known})
    return environment


def render_page(template: str, **values: object) -> str:
    """Return a page of Markdown, or a part of one; between paragraphs a template may leave many lines."""
    text = templates(markdown).get_template(template).render(values)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def notes(template: str, **values: object) -> list[str]:
    """Return the paragraphs of a template, each once, as ``told`` writes them."""
    text = templates(visible).get_template(template).render(values)
    return [*dict.fromkeys(map(told, filter(str.strip, re.split(r"\n\s*\n", text))))]


def told(text: str) -> str:
    """Return lines of a template as one: the end of a line is a blank, but for none before punctuation."""
    return re.sub(r"\s*\n\s*", " ", re.sub(r"\s*\n\s*(?=[,.;:)])", "", text)).strip()


def operator(name: str) -> str:
    """Return an operator in words with its name in brackets, or its name."""
    told = texts("operators").get(name.removesuffix(" (workspace)"))
    return f"{told} ({name})" if told else name


def set_by(one: Any, largest: str) -> str:
    """Say what ran as a peak was reached, and the ``largest`` part of it, if that is known."""
    where = f"{words(one.peak_phase)}: {operator(one.peak_op)} in {one.peak_module or 'no module'}"
    return f"{where}; {largest}" if largest else where


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
