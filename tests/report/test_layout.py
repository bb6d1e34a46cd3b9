"""Tables for the terminal."""

from io import StringIO

from rich.console import Console

from bench.report.columns import terminal_table, told_once
from bench.report.text import Table


def test_a_narrow_terminal_breaks_long_words_and_cuts_nothing_off() -> None:
    """Headers stay whole, and the letters of a long cell are all there."""
    cell = "llama-33b/qlora-nf4-dq-r16/b1-s512-ckpt-paged32bit-pack"
    table = Table(header=("Cell", "Allocated", "Reserved"), rows=((cell, "19.69 GiB", "20.41 to 20.46 GiB"),))
    text = StringIO()
    Console(file=text, width=44).print(terminal_table(table, "Plan"))
    shown = text.getvalue()
    assert "…" not in shown
    assert "Allocated" in shown
    first_column = "".join(line[2:].split("  ")[0].strip() for line in shown.splitlines()[4:])
    assert cell == first_column


def test_a_column_of_one_value_is_told_once() -> None:
    """The first column and columns of one title stay; words are left, numbers right; one row stays whole."""
    table = Table(
        header=("Cell", "Phase", "Size", "Saving", "Saving"),
        rows=(("a", "load", "1", "no", "no"), ("b", "load", "2", "no", "no")),
        left=2,
    )
    varying = told_once(table)
    assert ((("Phase", "load"),), 1) == (varying.constants, varying.left)
    assert (("a", "1", "no", "no"), ("b", "2", "no", "no")) == varying.rows
    assert ("Cell", "Size", "Saving", "Saving") == varying.header
    single = Table(header=("Cell", "Size"), rows=(("a", "1"),))
    assert single == told_once(single)
