"""Plans of scenarios: which platforms and cards a cell is predicted for, and what changes are tried."""

from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.predict.plan import LADDER, PlanRequest, chosen_cards, plan_scenario
from bench.predict.pool import _adds_nothing
from bench.records.predictions import Change, Plan, Prediction, Refusal
from bench.workers.launch import Launcher
from records_factory import make_prediction
from replay_worker import PLANNED, replay

GIB = 1024**3


def plan(folder: Path, request: PlanRequest, *, device: str = "cuda", only: str | None = "*/lora-*") -> Plan:
    """Plan the scenario with replay workers, which answer a GiB for each sequence of the batch."""
    path = folder / "example.toml"
    path.write_text(PLANNED.format(device=device, batches="[8, 24, 90]"), encoding="utf-8")
    launcher = Launcher(work=replay, preload=["bench.workers.child"])
    return plan_scenario(path, only, request, lambda _done, _total: None, launcher)


def test_each_card_gets_its_capability_and_its_verdict(tmp_path: Path) -> None:
    """Cards of one capability share a prediction; each is judged by its own memory."""
    cards = chosen_cards(["rtx3090", "rtx-a6000", "h100-80gb"], [])
    found = plan(tmp_path, PlanRequest(cards=cards, advice=False))
    assert [card.name for card in found.cards] == ["rtx3090", "rtx-a6000", "h100-80gb"]
    verdicts = {one.cell.training.micro_batch: [] for one in found.cells}  # type: dict[int, list[tuple[str, str]]]
    for one in found.cells:
        assert isinstance(one.answer, Prediction)
        capability = {"h100-80gb": (9, 0)}.get(one.verdicts[0].card, (8, 6))
        assert one.answer.platform.capability == capability
        verdicts[one.cell.training.micro_batch] += [(each.card, each.answer) for each in one.verdicts]
    assert verdicts == {
        8: [("rtx3090", "fits"), ("rtx-a6000", "fits"), ("h100-80gb", "fits")],
        24: [("rtx3090", "does not fit"), ("rtx-a6000", "fits"), ("h100-80gb", "fits")],
        90: [("rtx3090", "does not fit"), ("rtx-a6000", "does not fit"), ("h100-80gb", "does not fit")],
    }


def test_without_a_card_a_ladder_of_cards_is_tried(tmp_path: Path) -> None:
    """One prediction a cell, judged for a card of each usual size."""
    found = plan(tmp_path, PlanRequest(advice=False))
    assert found.ladder
    assert {card.name for card in found.cards} == set(LADDER)
    assert [len(one.verdicts) for one in found.cells] == [len(LADDER)] * 3


def test_a_cell_for_the_cpu_is_predicted_for_it_unless_a_card_is_named(tmp_path: Path) -> None:
    """The ledger's peak has no verdict; with a card the same cell is judged for that."""
    on_cpu = plan(tmp_path, PlanRequest(advice=False), device="cpu")
    assert (on_cpu.cards, on_cpu.ladder) == ((), False)
    assert {one.verdicts for one in on_cpu.cells} == {()}
    assert [one.answer.platform.device for one in on_cpu.cells if isinstance(one.answer, Prediction)] == [
        "cpu"
    ] * 3
    on_card = plan(tmp_path, PlanRequest(cards=chosen_cards([], ["24GiB"]), advice=False), device="cpu")
    assert [one.verdicts[0].answer for one in on_card.cells] == ["fits", "does not fit", "does not fit"]


def test_changes_are_kept_where_they_free_memory_the_best_first(tmp_path: Path) -> None:
    """A replayed cell takes less only with a smaller batch, so of all changes that one is left."""
    cards = chosen_cards(["rtx3090"], [])
    small = plan(tmp_path, PlanRequest(cards=cards))
    assert [[change.what for change in one.changes or ()] for one in small.cells] == [
        ["half the micro-batch, twice the accumulation"]
    ] * 3
    halved = small.cells[1].changes
    assert halved is not None
    assert (halved[0].prediction.allocated_peak_bytes, halved[0].verdicts[0].answer) == (12 * GIB, "fits")
    assert {one.changes for one in plan(tmp_path, PlanRequest(cards=cards, advice=False)).cells} == {None}


def test_a_refused_cell_has_its_reason_and_the_others_their_numbers(tmp_path: Path) -> None:
    """Whether anything was predicted decides the exit code."""
    found = plan(tmp_path, PlanRequest(), only=None)
    assert [isinstance(one.answer, Refusal) for one in found.cells] == [False] * 3 + [True] * 3
    assert found.any_predicted
    assert not plan(tmp_path, PlanRequest(), only="*/refused-*").any_predicted


def test_wrong_options_are_refused_before_anything_starts(tmp_path: Path) -> None:
    """A card, an allocator setting and a choice of cells that do not exist."""
    with pytest.raises(UsageError, match="Perhaps you meant"):
        chosen_cards(["rtx409"], [])
    with pytest.raises(UsageError, match="expandable_segment"):
        plan(tmp_path, PlanRequest(allocator="expandable_segment:True"))
    with pytest.raises(UsageError, match="matches no cell"):
        plan(tmp_path, PlanRequest(), only="nothing")


def test_a_combined_change_is_kept_only_if_it_frees_more_than_its_parts() -> None:
    """Chunks that add nothing to paging go; checkpointing adds something; LoRA is no part of QLoRA."""
    sizes = {
        "paged 8-bit AdamW": 10,
        "paged 8-bit AdamW and loss in chunks": 10,
        "gradient checkpointing, paged 8-bit AdamW and loss in chunks": 6,
        "LoRA": 4,
        "QLoRA": 5,
    }
    changes = [
        Change(what=what, prediction=make_prediction(size * GIB), verdicts=()) for what, size in sizes.items()
    ]
    dropped = [change.what for change in changes if _adds_nothing(change, changes)]
    assert ["paged 8-bit AdamW and loss in chunks"] == dropped
