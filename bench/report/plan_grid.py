"""All cells of a plan as one table to sort and filter by length, batch and card."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from bench.compare.plan_rows import Forecast, PlanRow
from bench.records.plans import Plan, PlannedCell
from bench.report.grids import Grid, GridCell, Notes, Part, Tone, made_grid, text_part
from bench.report.operators import operator
from bench.report.text import GIBIBYTES, NOT_APPLICABLE, share, words


def plan_grid(plan: Plan, rows: Sequence[PlanRow], anchors: Mapping[str, str]) -> Grid:
    """Return all cells of a plan; ``anchors`` name the row of each cell id."""
    notes = Notes()
    cells: dict[str, PlannedCell] = {}
    for planned in plan.cells:
        cells.setdefault(planned.cell.id, planned)

    def part_of(row: PlanRow, index: int) -> str:
        return [*row.cell.split("/"), "", "", ""][index]

    def named(row: PlanRow) -> GridCell:
        refused = (notes.number(f"Cannot be predicted: {row.refusal}"),) if row.refusal else ()
        return GridCell(text=part_of(row, 1), value=part_of(row, 1), notes=refused)

    def number(name: Literal["sequence_length", "micro_batch"]) -> Callable[[PlanRow], GridCell]:
        def show(row: PlanRow) -> GridCell:
            value = getattr(cells[row.cell].cell.training, name)
            return GridCell(text=f"{value:,}", value=value)

        return show

    parts: list[Part[PlanRow]] = [
        Part("Method", named, choice="Method"),
        text_part("Model", lambda row: part_of(row, 0)),
        Part("Sequence length", number("sequence_length"), numeric=True, choice="Sequence length"),
        Part("Batch", number("micro_batch"), numeric=True, choice="Batch"),
        text_part("Window", lambda row: part_of(row, 2)),
    ]
    if plan.cards:
        parts.append(
            Part("Fits on" if not plan.ladder else "Smallest card that fits", _cards(plan), choice="Fits on")
        )
        parts.append(Part("Needed, context included", _needed, numeric=True, at_most=GIBIBYTES.name))
    parts.append(Part("Allocated", _size(lambda one: one.allocated_bytes), numeric=True))
    if plan.cards:
        parts.append(Part("Reserved", _reserved, numeric=True))
    if any(row.forecast and row.forecast.paged_bytes for row in rows):
        parts.append(Part("Paged, apart", _size(lambda one: one.paged_bytes), numeric=True))
    parts.append(Part("Peak set by", _plan_cause))
    return made_grid("plan", "All cells", parts, [(anchors[row.cell], row) for row in rows], notes)


def _cards(plan: Plan) -> Callable[[PlanRow], GridCell]:
    titles = {
        card.name: f"{card.name} ({GIBIBYTES.scaled(card.memory_bytes):.0f} GiB)" for card in plan.cards
    }

    def show(row: PlanRow) -> GridCell:
        if row.forecast is None:
            return GridCell(text=NOT_APPLICABLE, value=None, tags=("no prediction",))
        fitting = [verdict for verdict in row.verdicts if verdict.answer == "fits"]
        close = [verdict.card for verdict in row.verdicts if verdict.answer == "too close to call"]
        tags = tuple(titles[verdict.card] for verdict in fitting) or ("no card tried",)
        if fitting and plan.ladder:
            text = titles[fitting[0].card]
        else:
            text = ", ".join(f"{verdict.card}: {verdict.answer}" for verdict in row.verdicts)
            text = "none of them" if plan.ladder else text
        tone: Tone = "good" if fitting else "close" if close else "bad"
        value = GIBIBYTES.scaled(fitting[0].usable_bytes) if fitting else None
        return GridCell(text=text, value=value, tone=tone, tags=tags)

    return show


def _needed(row: PlanRow) -> GridCell:
    fitting = [verdict for verdict in row.verdicts if verdict.answer == "fits"]
    verdict = next(iter(fitting or row.verdicts[-1:]), None)
    if verdict is None:
        return GridCell(text=NOT_APPLICABLE, value=None)
    return GridCell(text=GIBIBYTES.show(verdict.needed_bytes), value=GIBIBYTES.scaled(verdict.needed_bytes))


def _size(read: Callable[[Forecast], int]) -> Callable[[PlanRow], GridCell]:
    def show(row: PlanRow) -> GridCell:
        if row.forecast is None:
            return GridCell(text=NOT_APPLICABLE, value=None)
        size = read(row.forecast)
        return GridCell(text=GIBIBYTES.show(size), value=GIBIBYTES.scaled(size))

    return show


def _reserved(row: PlanRow) -> GridCell:
    one = row.forecast
    if one is None or one.reserved_high_bytes is None:
        return GridCell(text=NOT_APPLICABLE, value=None)
    text = GIBIBYTES.span(one.reserved_low_bytes, one.reserved_high_bytes)
    return GridCell(text=text, value=GIBIBYTES.scaled(one.reserved_high_bytes))


def _plan_cause(row: PlanRow) -> GridCell:
    one = row.forecast
    if one is None:
        return GridCell(text=NOT_APPLICABLE, value=None)
    text = f"{words(one.peak_phase)}: {operator(one.peak_op)} in {one.peak_module or 'no module'}"
    if one.largest_category:
        text += f"; {words(one.largest_category)} {share(one.largest_share, 0)}"
    return GridCell(text=text, value=text)
