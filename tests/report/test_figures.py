"""Figures: drawn from rows where there is data, left out with a reason where there is none."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import altair as alt
import pytest

from bench.commands.material import read_material, write_all_figures
from bench.compare.comparison import compare
from bench.records.predictions import read_plan
from bench.records.records import Record
from bench.report.figures import Figure, comparison_figures, plan_figures, write_figures
from bench.scenario.catalogue import card
from hostile_records import SCRIPT, make_hostile_records
from many_cells import make_records
from records_factory import make_environment, make_measurement, make_prediction, make_record

ROOT = Path(__file__).parents[2]
NAMES = {
    "memory",
    "memory-over-step",
    "predicted",
    "speed",
    "frontier",
    "accuracy-by-rank",
    "accuracy-by-quantisation",
    "scaling-sequence-length",
    "scaling-micro-batch",
    "scaling-gpus",
}


def figures_of(*records: Record) -> dict[str, Figure]:
    """Return the figures of records by name."""
    return {figure.name: figure for figure in comparison_figures(compare(records))}


@pytest.fixture(scope="module")
def sweep() -> dict[str, Figure]:
    """Return the figures of twenty methods, each at two lengths, and one with a prediction."""
    predicted = make_prediction(550 * 1024**2, platform={"device": "cpu"})
    return figures_of(*(one.replace(prediction=predicted) for one in make_records(40)))


def values_of(figure: Figure, layer: int) -> list[dict[str, Any]]:
    """Return the data of a layer; what all layers share stands at the top."""
    drawn = figure.specification()
    found: list[dict[str, Any]] = (drawn["layer"][layer].get("data") or drawn["data"])["values"]
    return found


def shown(figure: Figure) -> str:
    """Return the text of a figure as drawn."""
    return " ".join(text for text in ET.fromstring(figure.svg()).itertext() if text.strip())  # noqa: S314 - our own


def test_a_sweep_has_every_figure_and_says_what_each_shows(sweep: dict[str, Figure]) -> None:
    """Each is valid Vega-Lite with a caption; batch and GPUs are the same everywhere: those are left out."""
    missing = {name: figure.missing for name, figure in sweep.items() if figure.missing}
    assert missing == {
        "scaling-micro-batch": "no two cells differ in batch alone.",
        "scaling-gpus": "no two cells differ in number of GPUs alone.",
    }
    drawn = {name for name, figure in sweep.items() if not figure.missing}
    assert NAMES == drawn | set(missing)
    assert drawn == {name for name in drawn if sweep[name].caption}
    for figure in (
        *(sweep[name] for name in drawn),
        *plan_figures(read_plan(ROOT / "results" / "predicted" / "65b_48gb.json")),
    ):
        if not figure.missing:
            alt.Chart.from_dict(figure.specification())


def test_the_peak_is_labelled_with_its_operator_and_module(sweep: dict[str, Figure]) -> None:
    """Over the step: phases by name, and at the highest point how much, what and where."""
    text = shown(sweep["memory-over-step"])
    assert "600 MiB: aten::mm in lm_head" in text
    assert "forward" in text
    assert "Not drawn: 14 more cells" in sweep["memory-over-step"].caption


def test_prediction_and_reading_stand_beside_each_other(sweep: dict[str, Figure]) -> None:
    """Both in one row of one axis, named apart."""
    first = values_of(sweep["predicted"], 0)[0]
    assert (550, 550, 600) == (first["low"], first["high"], first["read"])
    assert "predicted" in shown(sweep["predicted"])


def test_cards_that_are_named_are_lines_in_the_figure() -> None:
    """The line is at what the card has to give, and its name stands at it."""
    records = (make_record(),)
    (memory, *_) = comparison_figures(compare(records), [card("rtx4090")])
    lines = values_of(memory, 1)
    assert [(card("rtx4090").usable_bytes / 1024**2, "GeForce RTX 4090")] == [
        (line["size"], line["text"]) for line in lines
    ]


def test_cells_are_named_by_what_they_do_not_share_and_never_alike() -> None:
    """Model and window are said once, under the figure; two environments, two keys are two bars."""
    other = make_environment(threads={"torch": 4})
    first, second = make_record(), make_record(key="2" * 64, environment=other)
    memory = figures_of(first, second)["memory"]
    assert {"lora-r8 (A)", "lora-r8 (B)"} == {bar["cell"] for bar in values_of(memory, 0)}
    assert memory.caption.endswith("All of tiny, b4-s256.")
    again = figures_of(first, make_record(key="3" * 64))["memory"]
    assert {"lora-r8", "lora-r8 [2]"} == {bar["cell"] for bar in values_of(again, 0)}


def test_what_is_dominated_is_grey_and_the_rest_is_not(sweep: dict[str, Figure]) -> None:
    """Memory falls and speed rises with the number: only the last cell is on the frontier."""
    values = values_of(sweep["frontier"], 0)
    assert [True] * 39 + [False] == [value["grey"] for value in values]


def test_without_data_a_figure_is_left_out_with_its_reason() -> None:
    """One run without ledger, steps or evaluations: nothing is drawn, and every reason is given."""
    empty = make_measurement(ledger=None, steps=(), evaluations=())
    figures = figures_of(make_record(measurement=empty))
    assert NAMES == {name for name, figure in figures.items() if figure.missing}
    assert "no record holds the ledger's timeline; records made before it was kept have none." == (
        figures["memory-over-step"].missing
    )


def test_more_cells_than_can_be_seen_are_not_drawn_and_counted() -> None:
    """Forty bars, and a caption that says how many more there are."""
    memory = figures_of(*make_records(45))["memory"]
    assert "Not drawn: 5 more cells, which are in the table." in memory.caption
    assert 40 == len(values_of(memory, -1))


def test_a_plan_for_one_card_adds_up_to_what_has_to_fit() -> None:
    """Live tensors, what is reserved beyond them and the context are one bar, against the card's line."""
    plan = read_plan(ROOT / "results" / "predicted" / "65b_48gb.json")
    only = plan.cards[0]
    cells = tuple(one for one in plan.cells if any(verdict.card == only.name for verdict in one.verdicts))
    plan = plan.model_copy(update={"cells": cells, "cards": (only,)})
    (memory, *_) = plan_figures(plan)
    totals = values_of(memory, -1)
    needed = [one.verdicts[0].needed_bytes / 1024**3 for one in cells]
    assert pytest.approx(needed) == [total["size"] for total in totals]


def test_bars_of_a_plan_are_named_by_what_differs() -> None:
    """What all ids have in common is said once, so that none is cut off; no two names are alike."""
    plan = read_plan(ROOT / "results" / "predicted" / "33b_24gb.json")
    memory = next(one for one in plan_figures(plan) if one.name == "memory")
    drawn = json.dumps(memory.specification())
    assert memory.caption.endswith(" Cells: llama-33b/*/b1-s512-autocast-bf16-ckpt*-pack.")
    names = {name for name in re.findall(r'"cell": "([^"]*)"', drawn) if name}
    assert {"lora-r16", "lora-r16 paged32bit"} < names
    assert len({one.cell.id for one in plan.cells}) == len(names)


def test_a_large_plan_shows_every_model_and_method() -> None:
    """Of 144 cells each of two models and nine methods is a bar, and a series of its model's figure."""
    plan = read_plan(ROOT / "results" / "predicted" / "7b_single_gpu.json")
    pairs = {tuple(one.cell.id.split("/")[:2]) for one in plan.cells}
    figures = {figure.name: figure for figure in plan_figures(plan)}
    memory = figures["memory"]
    drawn = [bar["cell"] for bar in values_of(memory, -1)]
    assert pairs == {tuple(cell.split("/")[:2]) for cell in drawn}
    assert len(pairs) == len(drawn)
    assert "llama-2-7b/qlora-nf4-dq-r16" in drawn
    assert "Of each model and method the cell at the longest sequence that needs least." in memory.caption
    lengths = [figures["scaling-sequence-length"], figures["scaling-sequence-length-2"]]
    models = ("llama-2-7b", "mistral-7b")
    series = {
        (model, point["series"])
        for model, figure in zip(models, lengths, strict=True)
        for point in values_of(figure, 0)
    }
    assert pairs == series  # what all have in common is said once
    assert "Cells: llama-2-7b/*/b1-autocast-bf16-ckpt-pack." in lengths[0].caption
    titles = [f"Scaling with sequence length: {model}" for model in models]
    assert titles == [figure.title for figure in lengths]
    # Points are what torch reserves, so that a card's line has to leave out the CUDA context.
    assert str(card("rtx4090").torch_bytes / 1024**3) in str(lengths[0].specification())
    assert "Lines are what a card has beside its CUDA context." in lengths[0].caption


def test_memory_over_the_number_of_gpus_begins_with_one() -> None:
    """A series for each model and method, also where several GPUs hold 4-bit weights in another dtype."""
    plan = read_plan(ROOT / "results" / "parallel" / "several_gpus.json")
    (figure,) = [one for one in plan_figures(plan) if one.name == "scaling-gpus"]
    points = values_of(figure, 0)
    pairs = {tuple(one.cell.id.split("/")[:2]) for one in plan.cells}
    assert pairs == {tuple(point["series"].split("/")[:2]) for point in points}
    of_qlora = {point["value"] for point in points if point["series"].startswith("llama-2-70b/qlora")}
    assert of_qlora == {1, 2, 4, 8}


def test_no_two_figures_have_one_title_and_near_accuracies_one_label() -> None:
    """Two windows are two frontiers, each named; 95.2 and 96.8 % are not both 96 %."""
    folder = ROOT / "results" / "reference"
    comparison = read_material([folder / "smollm2_cpu", folder / "smollm2_learns"]).comparison
    assert comparison is not None
    figures = comparison_figures(comparison)
    titles = [figure.title for figure in figures]
    assert len(set(titles)) == len(titles)
    near = next(figure for figure in figures if "b16-s64" in figure.title)
    labels = [word for word in shown(near).split() if word.endswith("%")]
    assert len(set(labels)) == len(labels) > 1


def test_figures_are_written_as_svg_and_png(tmp_path: Path) -> None:
    """Both are what their names say; a stranger's text is text in them too."""
    records = make_hostile_records()
    lines = list(write_figures(comparison_figures(compare(records)), tmp_path / "new"))
    assert f"wrote {tmp_path / 'new' / 'memory'}.svg and .png" in lines
    assert any(line.startswith("no figure predicted: ") for line in lines)
    svg = (tmp_path / "new" / "memory.svg").read_text(encoding="utf-8")
    assert SCRIPT not in svg
    assert [] == [one for one in ET.fromstring(svg).iter() if one.tag.endswith("script")]  # noqa: S314 - our own
    assert (tmp_path / "new" / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_figures_of_a_plan_alone_lie_in_the_folder_itself(tmp_path: Path) -> None:
    """With records beside it they lie in a folder of their own, so that none is overwritten."""
    material = read_material([ROOT / "results" / "predicted" / "33b_24gb.json"])
    list(write_all_figures(material, tmp_path, ()))
    assert (tmp_path / "memory.svg").is_file()
