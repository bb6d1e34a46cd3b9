"""The order of runs: A B B A, and what of it is left."""

import itertools

from bench.gate.schedule import order_of, turns, warm_ups
from bench.records.sittings import SideName, SittingRun
from replay_worker import make_cell


def made(side: SideName, repeat: int, outcome: str = "ok", purpose: str = "measured") -> SittingRun:
    """Return a run of the cell ``replay/ok``."""
    fields = {"cell": "replay/ok", "side": side, "purpose": purpose, "repeat": repeat, "outcome": outcome}
    return SittingRun.model_validate(
        fields | {"started_at": "2026-11-22T00:00:00.000+00:00", "total_ns": 1, "file": "a.json"}
    )


def test_sides_alternate_so_that_a_linear_drift_hits_both_alike() -> None:
    """After every second repeat the places of both sides in the order sum to the same."""
    order = list(itertools.chain.from_iterable(order_of(repeat) for repeat in range(1, 9)))
    assert list("ABBAABBAABBAABBA") == ["A" if side == "base" else "B" for side in order]
    for repeats in (2, 4, 6, 8):
        places: dict[SideName, int] = {"base": 0, "candidate": 0}
        for place, side in enumerate(order[: 2 * repeats]):
            places[side] += place
        assert places["base"] == places["candidate"]


def test_what_was_run_is_left_out_and_what_others_spoilt_is_not() -> None:
    """A sitting that broke off between two runs of a repeat goes on with the second."""
    runs = [
        made("base", 0, purpose="warm-up"),
        made("base", 1),
        made("candidate", 1),
        made("candidate", 2, outcome="contaminated"),
        made("candidate", 2),
        made("base", 3, outcome="contaminated"),
    ]
    left = [
        [(turn.side, turn.repeat) for turn in repeat] for repeat in turns(make_cell("ok"), range(1, 4), runs)
    ]
    assert [[("base", 2)], [("base", 3), ("candidate", 3)]] == left


def test_each_model_and_device_is_warmed_up_once_on_each_side() -> None:
    """By its first cell, in the order of the cells."""
    other = {"name": "other", "random": "toy"}
    cells = [make_cell("ok"), make_cell("ok-2"), make_cell("ok-3", model=other)]
    found = [(turn.cell.id, turn.side, turn.repeat) for turn in warm_ups(cells)]
    expected = [(cell, side, 0) for cell in ("replay/ok", "replay/ok-3") for side in ("base", "candidate")]
    assert expected == found
