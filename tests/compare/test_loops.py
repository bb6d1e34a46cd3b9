"""Loops are set side by side like methods: which needs less, and why where the records show it."""

from typing import Any

from bench.compare import reason_of
from bench.compare.comparison import compare
from bench.compare.plans import plan_rows
from bench.records.predictions import Plan, PlannedCell
from bench.records.records import Record
from bench.report.highlights import sentences
from bench.report.pages import render_summary
from bench.report.predicted.fit import loop_sentences
from bench.report.text import MEBIBYTES
from bench.scenario.cell import Cell
from records_factory import (
    MIB,
    make_cell,
    make_ledger,
    make_measurement,
    make_prediction,
    make_record,
    make_steps,
)


def cell_in(driver: str) -> Cell:
    """Return a cell of LoRA in a loop, as its id names it."""
    loop = "" if driver == "window" else f"-{driver}"
    return make_cell(id=f"tiny/lora-r8{loop}/b4-s256", loop={"driver": driver})


def make(driver: str, **categories_mib: int) -> Record:
    """Return a run in a loop with the bytes of each category at the peak, in MiB."""
    sizes = {name: size * MIB for name, size in categories_mib.items()}
    ledger = make_ledger(sum(sizes.values()), categories_at_peak_bytes=sizes)
    return make_record(cell=cell_in(driver), measurement=make_measurement(ledger=ledger, steps=make_steps()))


def told(*records: Record) -> dict[str, str]:
    """Return the sentences about one loop against another, of records that share a table."""
    (one,) = compare(records).groups
    found = {sentence.about: sentence.text for sentence in sentences(one, MEBIBYTES)}
    return {about: text for about, text in found.items() if "instead of" in about}


WINDOW = make("window", weights=300, logits=200)
TRAINER = make("hf-trainer", weights=300, logits=201)
TRL = make("trl-sft", weights=300, logits=61)


def test_a_loop_is_set_against_the_one_before_it_with_the_cause() -> None:
    """Where logits alone differ, trl's loss in chunks is the cause; what rounds to nothing has none."""
    found = told(TRL, WINDOW, TRAINER)
    assert list(found) == ["hf-trainer instead of window", "trl-sft instead of hf-trainer"]
    assert found["hf-trainer instead of window"].startswith(
        "lora-r8-hf-trainer: as much memory by live tensors, "
    )
    text = found["trl-sft instead of hf-trainer"]
    assert text.startswith("lora-r8-trl-sft: 28 % less memory by live tensors, ")
    assert text.endswith(" (logits 61 MiB instead of 201 MiB: the loss in chunks).")


def test_no_cause_is_given_where_the_records_show_none() -> None:
    """More in one category and less in another explain nothing; others have no loss in chunks."""
    (text,) = told(TRAINER, make("trl-sft", weights=380, logits=61)).values()
    assert "12 % less memory by live tensors" in text
    assert "instead" not in text
    (text,) = told(TRAINER, make("trl-sft", weights=100, logits=201)).values()
    assert text.endswith(" (weights 100 MiB instead of 300 MiB).")
    assert reason_of({}, {}) is None


def test_the_loop_has_a_column_and_other_settings_are_not_compared() -> None:
    """The page shows the loop of each row; other data or arguments are no pair."""
    table = render_summary(compare([WINDOW, TRL]))
    assert "| lora-r8-trl-sft | trl-sft |" in table
    other: dict[str, Any] = {"loop": {"driver": "trl-sft", "args": {"packing_strategy": "wrapped"}}}
    assert not told(WINDOW, make_record(cell=make_cell(id="tiny/other/b4-s256", **other)))


def test_a_plan_says_the_same_of_what_it_predicts() -> None:
    """Reserved and allocated bytes, and the category that makes the difference."""
    cells = tuple(
        PlannedCell(
            cell=cell_in(driver),
            answer=make_prediction(size * MIB, categories_at_peak_bytes={"logits": size * MIB}),
            verdicts=(),
        )
        for driver, size in (("hf-trainer", 500), ("trl-sft", 400))
    )
    plan = Plan(scenario="x", title="x", cards=(), cells=cells)
    (one,) = loop_sentences(plan, plan_rows(plan))
    assert one.about == "trl-sft instead of hf-trainer"
    assert "20 % less live (logits 0.39 GiB instead of 0.49 GiB: the loss in chunks)." in one.text
