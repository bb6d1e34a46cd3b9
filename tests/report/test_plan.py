"""A plan as a user reads it: one page kept whole, the terminal, JSON and back, blocks of pages."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bench.errors import UsageError
from bench.records.predictions import (
    Change,
    Plan,
    PlannedCell,
    Refusal,
    Speed,
    check_fit,
    plan_json,
    read_plan,
)
from bench.records.readings import Caveat, WeightsOfKind, WeightsReached
from bench.report.predicted.plan import render_markdown, render_short, render_terminal
from bench.scenario.catalogue import Card, card, card_of_memory
from bench.scenario.platform import Platform
from records_factory import MIB, make_cell, make_prediction

GOLDEN = Path(__file__).parents[1] / "golden" / "plan.md"
GIB = 1024**3
AMPERE = Platform(capability=(8, 6), torch="2.13.0", bitsandbytes="0.50.2")
HOPPER = Platform(capability=(9, 0), torch="2.13.0", bitsandbytes="0.50.2")


def planned(
    name: str, size_gib: float, cards: dict[Platform, Card], *, paged_gib: int = 0
) -> list[PlannedCell]:
    """Return a cell on the platforms of the cards, of a size and a little more on the later ones."""
    cells = []
    for index, (platform, one) in enumerate(cards.items()):
        prediction = make_prediction(
            round(size_gib * GIB) + index * 100 * MIB, platform=platform, paged_bytes=paged_gib * GIB
        )
        verdicts = (check_fit(prediction, one),)
        cells.append(PlannedCell(cell=make_cell(id=name), answer=prediction, verdicts=verdicts))
    return cells


def example() -> Plan:
    """Return a plan with everything: two capabilities, a refusal, paged state, changes, a caveat."""
    cards = {AMPERE: card("rtx3090"), HOPPER: card("h100-80gb")}
    large = planned("llama/full/b1-s512", 30, cards)
    smaller = make_prediction(10 * GIB, platform=AMPERE)
    verdicts = (check_fit(smaller, cards[AMPERE]),)
    large[0] = large[0].model_copy(
        update={"changes": (Change(what="LoRA of rank 16", prediction=smaller, verdicts=verdicts),)}
    )
    close = planned("llama/lora-r8/b4-s512", 22, cards, paged_gib=2)
    caveat = Caveat(code="example", message="Something to know of a <prediction>.")
    close[0] = close[0].model_copy(
        update={"answer": close[0].answer.model_copy(update={"caveats": (caveat,)})}
    )
    refused = PlannedCell(
        cell=make_cell(id="llama/boft/b1-s512"), answer=Refusal(message="aten::nonzero | depends on data.")
    )
    return Plan(
        scenario="example",
        title="An *example*",
        allocator="expandable_segments:True",
        cards=tuple(cards.values()),
        cells=(*large, *close, refused),
    )


def shown(renderable: object) -> str:
    """Return what a terminal 140 columns wide shows."""
    output = io.StringIO()
    Console(file=output, width=140, color_system=None).print(renderable)
    return output.getvalue()


def test_a_page_is_kept_whole() -> None:
    """Every number, sentence and escape; running this file renews it."""
    assert GOLDEN.read_text(encoding="utf-8") == render_markdown(example())


def test_json_is_read_back_as_it_was(tmp_path: Path) -> None:
    """What is rendered from the file is what is rendered at once."""
    (tmp_path / "plan.json").write_text(plan_json(example()), encoding="utf-8")
    assert read_plan(tmp_path / "plan.json") == example()


@pytest.mark.parametrize("content", ["{", '{"plan_version": 2}', "[]"])
def test_what_is_not_a_plan_is_said_to_be_none(tmp_path: Path, content: str) -> None:
    """One sentence with the file and what to do."""
    path = tmp_path / "plan.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"plan\.json is not a plan .*write one with"):
        read_plan(path)
    (tmp_path / "link.json").symlink_to(path)
    with pytest.raises(UsageError, match="not a plain file"):
        read_plan(tmp_path / "link.json")


def test_a_plan_that_quantises_has_a_column_for_how_much() -> None:
    """A cell that does not has none of its own."""
    kinds = (WeightsOfKind("linear layers", 30, 30), WeightsOfKind("experts in one tensor", 970, 0, 0, 1940))
    some = make_prediction(10 * GIB, reach=WeightsReached(kinds=kinds))
    none = make_prediction(10 * GIB)
    cells = [PlannedCell(cell=make_cell(id=f"a/{at}/c"), answer=one) for at, one in enumerate((some, none))]
    lines = shown(render_short(Plan(scenario="x", title="x", cards=(), cells=tuple(cells)))).splitlines()
    assert "4/8 bit" in lines[3]
    assert ["3 %" in line for line in lines[5:7]] == [True, False]


def test_cells_that_cannot_be_predicted_for_one_reason_are_told_once() -> None:
    """With the first two of them and how many more there are; another reason has a line of its own."""
    whys = ("It took too long.",) * 4 + ("It is refused.",)
    cells = [
        PlannedCell(cell=make_cell(id=f"a/{at}/c"), answer=Refusal(message=why))
        for at, why in enumerate(whys)
    ]
    page = " ".join(shown(render_short(Plan(scenario="x", title="x", cards=(), cells=tuple(cells)))).split())
    assert page == (
        "a/0/c, a/1/c and 2 more cannot be predicted: It took too long. "
        "a/4/c cannot be predicted: It is refused."
    )


def test_details_say_what_a_method_does_to_each_kind_of_weights() -> None:
    """Parameters, the shares in 4 or 8 bits and with adapters, and the bytes of the rest."""
    kinds = (
        WeightsOfKind("linear layers", 1000, 1000, 250),
        WeightsOfKind("embeddings", 1 << 30, 0, 0, 2 << 30),
    )
    cell = PlannedCell(cell=make_cell(id="a/b/c"), answer=make_prediction(reach=WeightsReached(kinds=kinds)))
    page = shown(render_terminal(Plan(scenario="x", title="x", cards=(), cells=(cell,)), details=True))
    rows = [" ".join(line.split()) for line in page.splitlines() if line.startswith("  a/b/c   ")]
    assert "a/b/c linear layers 1,000 100 % 25 % 0.00" in rows
    assert "a/b/c embeddings 1,073,741,824 0 % 0 % 2.00" in rows


def test_one_card_has_its_context_and_total_in_columns() -> None:
    """And the verdict alone under its name."""
    one = card_of_memory("24GiB")
    plan = Plan(scenario="x", title="x", cards=(one,), cells=tuple(planned("a/b/c", 10, {AMPERE: one})))
    lines = shown(render_short(plan)).splitlines()
    assert lines[2].split() == [
        *("Cell", "Tensors", "Reserved", "Context", "Needed", "on", "the", "card", "Peak", "in", "24GiB")
    ]
    assert " ".join(lines[4].split()) == (
        "a/b/c 10.00 GiB 10.50 to 11.00 GiB 0.70 GiB 11.70 GiB backward fits"
    )
    assert lines[-1] == "On a card with 24 GiB, 1 cell fits."


def one_line(plan: Plan) -> str:
    """Return its page without line breaks."""
    return " ".join(render_markdown(plan).split())


def test_what_would_make_a_cell_fit_is_said_with_the_verdicts() -> None:
    """Changes that fit by themselves, the slightest first; combined ones only where none does alone."""
    small = card("rtx3090")

    def sentence(*sizes: tuple[str, int]) -> str:
        (cell,) = planned("a/b/c", 30, {AMPERE: small})
        changes = []
        for what, size in sizes:
            after = make_prediction(size * GIB, platform=AMPERE)
            changes.append(Change(what=what, prediction=after, verdicts=(check_fit(after, small),)))
        cell = cell.model_copy(update={"changes": tuple(changes)})
        return one_line(Plan(scenario="x", title="x", cards=(small,), cells=(cell,)))

    would = "a/b/c would fit one GeForce RTX 3090 with"
    assert f"{would} half the length or LoRA (predicted)." in sentence(
        ("a and b", 5), ("LoRA", 9), ("half the length", 14), ("less", 29)
    )
    assert f"{would} a and b (predicted)." in sentence(("a and b", 5), ("less", 29))
    assert "would fit" not in sentence(("less", 29))


def test_tokens_and_a_price_become_hours_and_cost() -> None:
    """From the ends of the speed's band: 7.2 million tokens at 1,000 to 2,000 a second, at 1.50 an hour."""
    one = card_of_memory("24GiB").model_copy(update={"power_w": 450.0})
    (cell,) = planned("a/b/c", 10, {AMPERE: one})
    speed = Speed(card=one.name, low=1000, point=1500, high=2000, mfu=0.5, step_s=1)
    verdicts = [verdict.model_copy(update={"tokens_per_second": speed}) for verdict in cell.verdicts]
    cell = cell.model_copy(update={"verdicts": tuple(verdicts)})
    plan = Plan(scenario="x", title="x", cards=(one,), cells=(cell,), tokens=7_200_000, price_an_hour=1.5)
    assert "| 1.00 to 2.00 | 1.50 to 3.00 | 0.900 |" in render_markdown(plan)  # 450 W for two hours
    assert "Hours and cost: of 7,200,000 tokens on one card, padding counted, at 1.5 an hour" in one_line(
        plan
    )
    assert "counted, at 3 an hour" in one_line(plan.model_copy(update={"price_an_hour": 3.0}))
    unknown = plan.model_copy(update={"cards": (one.model_copy(update={"power_w": None}),)})
    assert "| 1.00 to 2.00 | 1.50 to 3.00 | n/a |" in render_markdown(unknown)
    thrice = cell.model_copy(update={"epoch_tokens": 2_400_000})
    epochs = plan.model_copy(update={"tokens": None, "epochs": 3, "cells": (thrice,)})
    assert "| 1.00 to 2.00 | 1.50 to 3.00 | 0.900 |" in render_markdown(epochs)
    assert "Hours and cost: of 3 epochs of each cell's own data" in one_line(epochs)
    free = plan.model_copy(update={"price_an_hour": None})
    assert "Hours: of 7,200,000 tokens on one card, padding counted, from" in one_line(free)
    assert "Hours" in render_markdown(free)
    assert "Cost" not in render_markdown(free)
    two = plan.model_copy(update={"cards": (one, card("rtx3090"))})
    assert "Hours and cost on each card stand in the table of speeds" in " ".join(
        shown(render_terminal(two)).split()
    )
    assert "Hours and cost on each card" not in shown(render_terminal(plan))
    several = [
        one.model_copy(update={"tokens_per_second": speed.model_copy(update={"gpus": 4, "links_s": 0.25})})
        for one in verdicts
    ]
    spread = plan.model_copy(update={"cells": (cell.model_copy(update={"verdicts": tuple(several)}),)})
    assert "| 1,000 to 2,000 | 250 to 500 |" in render_markdown(spread)
    assert "| 1.00 to 2.00 | 6.00 to 12.0 | 3.60 |" in render_markdown(spread)  # four cards for as long
    assert "on the cell's GPUs, padding counted, at 1.5 an hour of each," in one_line(spread)
    assert b'"tokens"' not in plan_json(plan.model_copy(update={"tokens": None})).encode()


def test_a_ladder_names_the_smallest_card_that_fits() -> None:
    """Or none, and the sum says how many cells that holds for."""
    cards = (card("rtx3060-12gb"), card("rtx3090"), card("a100-80gb"))
    cells = []
    for name, size_gib in (("a/b/small", 9), ("a/b/large", 20), ("a/b/huge", 100)):
        prediction = make_prediction(size_gib * GIB, platform=AMPERE)
        verdicts = tuple(check_fit(prediction, one) for one in cards)
        cells.append(PlannedCell(cell=make_cell(id=name), answer=prediction, verdicts=verdicts))
    plan = Plan(scenario="x", title="x", cards=cards, ladder=True, cells=tuple(cells))
    text = shown(render_terminal(plan))
    assert "Cells: a/b/*" in text
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ") and line.strip()}
    assert "rtx3060-12gb, 10.60 GiB" in rows["small"]
    assert "rtx3090, 22.41 GiB" in rows["large"]
    assert "none of them" in rows["huge"]
    assert "1 cell of 3 fits on no card tried, not even one A100 80 GB." in text
    assert "Name yours with --gpu or --memory." in " ".join(text.split())


def test_a_terminal_says_first_what_most_readers_need() -> None:
    """Two caveats, of which what a loop asked for is the last, and how many more there are."""
    codes = ("values-assumed", "one", "two")
    caveats = tuple(Caveat(code=code, message=f"This is {code}.") for code in codes)
    answer = make_prediction(platform=Platform(device="cpu")).model_copy(update={"caveats": caveats})
    plan = Plan(scenario="x", title="x", cards=(), cells=(PlannedCell(cell=make_cell(), answer=answer),))
    text = shown(render_terminal(plan))
    assert "This is one." in text
    assert "This is two." in text
    assert "This is values-assumed." not in text
    assert "1 more caveat with --details." in text
    assert "This is values-assumed." in shown(render_terminal(plan, details=True))


def test_the_cpu_shows_live_tensors_only() -> None:
    """Nothing of allocators, cards or contexts."""
    prediction = make_prediction(600 * MIB, platform=Platform(device="cpu"))
    cell = PlannedCell(cell=make_cell(), answer=prediction)
    text = shown(render_terminal(Plan(scenario="x", title="x", cards=(), cells=(cell,))))
    assert "600 MiB" in text
    assert "Live tensors" in text
    assert "Reserved" not in text


def test_rendering_a_plan_imports_nothing_heavy() -> None:
    """``bench run`` renders one before it measures."""
    code = (
        "import sys, bench.predict.plan, bench.predict.fit;"
        "from bench.report.predicted import fit, plan;"
        "print([name for name in ('torch', 'pandas', 'scipy', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plan_of_refusals_says_only_that_and_why() -> None:
    """Nothing about kernels, cards and bands where no number is shown."""
    whole = example()
    page = render_markdown(whole.model_copy(update={"cells": whole.cells[-1:]}))
    assert "1 of 1 cell cannot be predicted" in page
    assert "depends on data." in page
    assert not [words for words in ("is judged", "was traced", "H100", " for .") if words in page]


if __name__ == "__main__":
    GOLDEN.write_text(render_markdown(example()), encoding="utf-8")
