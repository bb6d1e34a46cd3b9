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


def test_columns_that_a_terminal_has_no_room_for_stand_below() -> None:
    """With the cell's name again; no word is broken that a quarter of the width holds, nothing is cut off."""
    titles = ("Cell", "Allocated", "Reserved", "Context", "Peak in", "rtx4090", "Tokens/s", "Hours", "Cost")
    row = (
        "m/lora-r8/b1-s512-fp32",
        "0.06 GiB",
        "0.08 GiB",
        "0.50 GiB",
        "backward",
        "fits",
        "19,206 to 37,884",
    )
    table = Table(header=titles, rows=((*row, "0.367 to 0.723", "0.403 to 0.795"),))
    text = StringIO()
    Console(file=text, width=80).print(terminal_table(table, "Plan"))
    words = text.getvalue().split()
    assert (words.count("Plan"), words.count("Cell"), words.count(row[0])) == (1, 2, 2)
    assert {word for part in (*titles, *row, "0.723", "0.795") for word in part.split()} <= {*words}
    assert max(map(len, text.getvalue().splitlines())) <= 80
    wide = StringIO()
    Console(file=wide, width=160).print(terminal_table(table, "Plan"))
    assert wide.getvalue().split().count("Cell") == 1


def test_each_part_begins_with_what_tells_its_rows_apart() -> None:
    """Two methods at two lengths: both columns come again, and the third does not."""
    titles = ("Method", "Length", "Batch", "Tokens/s", "Beside the fastest", "As fast from batch", "Bound by")
    rows = tuple(
        (method, length, "32", "252,708 to 415,002", "not distinguishable (ranges overlap)", "16", "memory")
        for method in ("lora", "qlora")
        for length in ("512", "1,024")
    )
    text = StringIO()
    Console(file=text, width=60).print(terminal_table(Table(header=titles, rows=rows), "Fastest"))
    words = text.getvalue().split()
    assert words.count("Method") == words.count("Length") > words.count("Batch") == 1
    assert words.count("1,024") == 2 * words.count("Length")


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
