"""What fits which card, in sentences: settings that it takes, what is needed, and where each method leads."""

from bench.records.predictions import Plan, PlannedCell, check_fit
from bench.report.predicted.fit import fit_sentences
from bench.report.text import RowLink
from bench.scenario.catalogue import Card, card, card_of_memory
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from records_factory import make_cell, make_prediction

GIB = 1024**3
AMPERE = Platform(capability=(8, 6), torch="2.13.0", bitsandbytes="0.50.2")


def cell_of(name: str, length: int) -> Cell:
    """Return a cell with its length."""
    cell = make_cell(id=name)
    return cell.model_copy(update={"training": cell.training.model_copy(update={"sequence_length": length})})


def make_plan(sizes_gib: dict[str, float], cards: tuple[Card, ...], *, ladder: bool = False) -> Plan:
    """Return a plan of cells, by method and window, with what torch reserves of each."""
    cells = []
    for name, size_gib in sizes_gib.items():
        length = int(name.rpartition("-s")[2].partition("-")[0])
        prediction = make_prediction(round(size_gib * GIB), platform=AMPERE)
        verdicts = tuple(check_fit(prediction, one) for one in cards)
        cells.append(PlannedCell(cell=cell_of(f"llama/{name}", length), answer=prediction, verdicts=verdicts))
    return Plan(scenario="x", title="x", cards=cards, ladder=ladder, cells=tuple(cells))


SIZES = {
    "full/b1-s512": 30,
    "full/b1-s512-ckpt": 28,
    "lora/b1-s512": 10,
    "lora/b1-s512-ckpt": 8,
    "full/b1-s2048": 60,
    "full/b1-s2048-ckpt": 50,
    "lora/b1-s2048": 40,
    "lora/b1-s2048-ckpt": 12,
    "qlora/b1-s2048": 39,
    "qlora/b1-s2048-ckpt": 9,
    "wide/b1-s2048": 45,
    "wide/b1-s2048-ckpt": 22.9,
}


def test_each_length_of_a_card_has_a_sentence_the_longest_first() -> None:
    """Who fits with what only, who is too close to call, who does not fit and how far off it is."""
    told = fit_sentences(make_plan(SIZES, (card_of_memory("24GiB"),)))
    assert [
        (
            "llama at 2,048 tokens, 24GiB",
            (
                "lora and qlora fit only with gradient checkpointing (10.60 to 13.90 GiB needed); "
                "wide is too close to call (at least 25.89 GiB needed); "
                "full does not fit (at least 55.70 GiB needed)."
            ),
        ),
        (
            "llama at 512 tokens, 24GiB",
            "lora fits (9.50 to 11.70 GiB needed); full does not fit (at least 31.50 GiB needed).",
        ),
    ] == [(one.about, one.text) for one in told]


def test_a_method_leads_to_the_cell_that_needs_least() -> None:
    """Both where it fits and where it does not."""
    told = fit_sentences(make_plan(SIZES, (card_of_memory("24GiB"),)))[0]
    links = {piece.text: piece.key for piece in told.pieces if isinstance(piece, RowLink)}
    names = ("lora", "qlora", "wide", "full")
    assert {name: f"llama/{name}/b1-s2048-ckpt" for name in names} == links


def test_of_a_ladder_the_smallest_card_of_each_method_is_told() -> None:
    """And what fits on none of them."""
    cards = (card("rtx3060-12gb"), card("rtx3090"))
    told = fit_sentences(make_plan(SIZES, cards, ladder=True))
    assert (
        "rtx3060-12gb (12 GiB) for qlora; rtx3090 (24 GiB) for lora; full and wide fit for certain on none "
        "(at least 25.60 GiB needed)."
    ) == told[0].text
    assert "llama at 2,048 tokens, smallest card that fits" == told[0].about


def test_without_a_card_nothing_is_said() -> None:
    """A plan for the CPU asks about none."""
    assert [] == fit_sentences(make_plan(SIZES, ()))


def test_a_verdict_on_a_card_that_the_plan_does_not_describe_is_left_out() -> None:
    """A plan may come from a stranger; what it does not describe has no sentence, and the rest stands."""
    cards = (card_of_memory("24GiB"), card_of_memory("80GiB"))
    plan = make_plan(SIZES, cards)
    alone = plan.model_copy(update={"cards": cards[:1]})
    assert fit_sentences(alone) == fit_sentences(make_plan(SIZES, cards[:1]))
