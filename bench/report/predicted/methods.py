"""A plan as a grid: methods down, sequence lengths across, and in each cell the smallest card that fits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.compare.plans import Need, PlanRow, card_fits
from bench.records.predictions import Plan
from bench.report.columns import Column, Grid, Tone, grid, page_table
from bench.report.text import GIBIBYTES, NOT_APPLICABLE, Table, significant

_TONES: Mapping[str, Tone] = {"fits": "good", "too close to call": "close", "does not fit": "bad"}


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """A model and a method: at each length what it needs in the window that takes least."""

    model: str
    method: str
    at: Mapping[int, Need]


def method_rows(plan: Plan) -> list[MethodRow]:
    """Return the smallest card for each method and length, or the largest that was tried in vain."""
    rows = []
    order = dict.fromkeys(one.cell.labels.method for one in plan.cells)
    for model in card_fits(plan):
        found: dict[str, dict[int, Need]] = {}
        for length in model.sequence_lengths:
            steps, nowhere = model.smallest_cards(length)
            for need in [*(need for _, needs in steps for need in needs), *nowhere]:
                found.setdefault(need.method, {})[length] = need
        rows += [MethodRow(model=model.model, method=name, at=found[name]) for name in order if name in found]
    return rows


def _columns(
    plan: Plan, rows: Sequence[PlanRow], anchors: Mapping[str, str] | None
) -> list[Column[MethodRow]]:
    cells = {row.cell: row for row in rows}

    def at(length: int) -> Column[MethodRow]:
        def text(row: MethodRow) -> str:
            if (need := row.at.get(length)) is None:
                return NOT_APPLICABLE
            speed = cells[need.cell].speed(need.card)
            rate = f"{significant(speed.low)} to {significant(speed.high)} tokens/s" if speed else ""
            place = need.card if need.answer == "fits" else f"{need.card} {need.answer}"
            return ", ".join(filter(None, (place, GIBIBYTES.show(need.needed_bytes), rate, need.window)))

        return Column(
            f"{length:,} tokens",
            text,
            lambda row: need.needed_bytes if (need := row.at.get(length)) else None,
            words=True,
            bar=True,
            link=lambda row: anchors[need.cell] if anchors and (need := row.at.get(length)) else None,
            tone=lambda row: _TONES[need.answer] if (need := row.at.get(length)) else "",
        )

    several = len({one.cell.labels.model for one in plan.cells}) > 1
    return [
        Column("Method", lambda row: row.method, choice="Method"),
        *([Column("Model", lambda row: row.model, choice="Model")] if several else []),
        *map(at, sorted({one.cell.training.sequence_length for one in plan.cells})),
    ]


def methods_table(plan: Plan, rows: Sequence[PlanRow]) -> Table:
    """Return the grid for a page; empty where no card was asked about."""
    columns = _columns(plan, rows, None)
    return replace(page_table(columns, method_rows(plan)), left=len(columns))


def methods_grid(
    plan: Plan,
    rows: Sequence[PlanRow],
    methods: Sequence[MethodRow],
    anchors: Mapping[str, str],
    prefix: str,
) -> Grid[MethodRow]:
    """Return the grid for HTML, each cell of which leads to its row in the table of all cells."""
    named = [(f"{prefix}method-{index}", row) for index, row in enumerate(methods, start=1)]
    title = "Smallest card that fits" if plan.cards[1:] else "What fits"
    return grid("methods", title, _columns(plan, rows, anchors), named, lambda _row, _place: ())
