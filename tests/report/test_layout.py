"""Tables for the terminal."""

from fnmatch import fnmatch
from io import StringIO
from pathlib import Path
from statistics import median

import pytest
from rich.console import Console

from bench.records.predictions import read_plan
from bench.records.published.score import read_validation
from bench.report.columns import TerminalTable, told_once
from bench.report.predicted.plan import render_terminal as render_plan
from bench.report.text import NOT_APPLICABLE, Table


def test_a_narrow_terminal_breaks_long_words_and_cuts_nothing_off() -> None:
    """Headers stay whole, numbers keep their unit, and a long id is broken after a slash or a hyphen only."""
    cell = "llama-33b/qlora-nf4-dq-r16/b1-s512-autocast-bf16-ckpt-paged32bit-pack"
    row = (cell, "19.69 GiB", "20.41 to 20.46 GiB")
    table = Table(header=("Cell", "Allocated", "Reserved"), rows=(row, row))
    text = StringIO()
    Console(file=text, width=44).print(TerminalTable(table, "Plan"))
    shown = text.getvalue()
    assert "…" not in shown
    assert "Allocated" in shown
    lines = [line[2:].split("  ")[0].strip() for line in shown.splitlines()[3:]]
    assert cell * 2 in "".join(lines)
    pieces = [line for line in lines if line and line in cell]
    assert {"/", "-"} >= {line[-1] for line in pieces if not cell.endswith(line)}
    assert "20.46 GiB" in shown


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
    table = Table(header=titles, rows=2 * ((*row, "0.367 to 0.723", "0.403 to 0.795"),))
    text = StringIO()
    Console(file=text, width=80).print(TerminalTable(table, "Plan"))
    words = text.getvalue().split()
    assert (words.count("Plan"), words.count("Cell"), words.count(row[0])) == (1, 2, 4)
    assert {word for part in (*titles, *row, "0.723", "0.795") for word in part.split()} <= {*words}
    assert max(map(len, text.getvalue().splitlines())) <= 80
    wide = StringIO()
    Console(file=wide, width=160).print(TerminalTable(table, "Plan"))
    assert wide.getvalue().split().count("Cell") == 1


def test_a_single_row_that_is_too_wide_is_a_list() -> None:
    """A line for each column, the id whole."""
    cell = "qwen3-8b/qlora-nf4-dq-r16/b1-s4096-ckpt"
    titles = ("Cell", "Tensors", "Reserved", "Needed on the card", "rtx4090")
    row = (cell, "17.75 GiB", "23.90 to 24.01 GiB", "24.51 GiB", "too close to call")
    text = StringIO()
    Console(file=text, width=80).print(TerminalTable(Table(header=titles, rows=(row,)), "Plan"))
    lines = [line.strip() for line in text.getvalue().splitlines()]
    assert [f"{title:21}{value}" for title, value in zip(titles, row, strict=True)] == lines[2:7]


@pytest.mark.parametrize(
    ("ids", "pattern", "shown"),
    [
        (("m/full/b1-s8-ckpt", "m/lora-r8/b1-s8-ckpt"), "m/*/b1-s8-ckpt", ("full", "lora-r8")),
        (("m/full/b1-s8", "m/full/b1-s8-fsdp2-x2"), "m/full/b1-s8*", (NOT_APPLICABLE, "fsdp2-x2")),
        (("m/full/b1-s8-ckpt", "n/full/b1-s16-ckpt"), "*/full/b1-*-ckpt", ("m s8", "n s16")),
        (("m/a/b1-s8", "m/b/b2-s4-ckpt"), "m/*/*", ("a b1-s8", "b b2-s4-ckpt")),
        (("m/a/b1-s8-x-pack", "m/a/b2-s8-x-ckpt-pack"), "m/a/*-s8-x*-pack", ("b1", "b2-ckpt")),
        (("m/a/b1-ga4-s8", "m/a/s8-ga4"), "m/a/*", ("b1-ga4-s8", "s8-ga4")),
        (("m/a/s8", "m/a/b1-s8"), "m/a/*s8", (NOT_APPLICABLE, "b1")),
    ],
)
def test_what_ids_have_in_common_is_said_once(
    ids: tuple[str, ...], pattern: str, shown: tuple[str, ...]
) -> None:
    """As a pattern that --only takes, which finds all of them."""
    assert all(fnmatch(one, pattern) for one in ids)
    text = StringIO()
    Console(file=text, width=80).print(
        TerminalTable(Table(header=("Cell", "Size"), rows=tuple((one, "1") for one in ids)), "Plan")
    )
    lines = text.getvalue().splitlines()
    assert ["Plan", f"Cells: {pattern}"] == lines[:2]
    assert shown == tuple(line.rpartition("1")[0].strip() for line in lines[5:7])


def test_below_a_plan_stands_less_than_the_plan_with_the_predictors_error() -> None:
    """It is that of the peaks of results/validation; what is said of one cell is no longer than it."""
    validation = read_validation(Path("results/validation/prediction.json"))
    errors = [
        abs(one.error)
        for row in validation.rows
        for one in row.measurements
        if row.loop == "window" and one.measured.moment == "peak" and one.error is not None
    ]
    told = f"Over {len(errors)} published GPU peaks predictions were off by {median(errors):.1%} (median), by"
    told = f"{told} {max(errors):.1%} at most."
    plan = read_plan(Path("results/predicted/33b_24gb.json"))
    one = plan.model_copy(update={"cells": plan.cells[:1]})
    text = StringIO()
    Console(file=text, width=80).print(render_plan(one))
    above, _, below = text.getvalue().partition("- ")
    assert told.replace("%", " %") in " ".join(below.split())
    assert len(below.splitlines()) <= len(above.splitlines())


def test_each_part_begins_with_what_tells_its_rows_apart() -> None:
    """Two methods at two lengths: both columns come again, and the third does not."""
    titles = ("Method", "Length", "Batch", "Tokens/s", "Beside the fastest", "As fast from batch", "Bound by")
    rows = tuple(
        (method, length, "32", "252,708 to 415,002", "not distinguishable (ranges overlap)", "16", "memory")
        for method in ("lora", "qlora")
        for length in ("512", "1,024")
    )
    text = StringIO()
    Console(file=text, width=60).print(TerminalTable(Table(header=titles, rows=rows), "Fastest"))
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
