"""All cells of a plan as one table to sort and filter by length, batch and card."""

from collections.abc import Callable, Mapping, Sequence

from bench.compare.plans import Forecast, PlanRow
from bench.records.predictions import CardFit, Plan
from bench.report.columns import Column, Grid, Place, Tone, grid
from bench.report.text import GIBIBYTES, NOT_APPLICABLE, operator, share, words


def plan_grid(plan: Plan, rows: Sequence[PlanRow], anchors: Mapping[str, str]) -> Grid:
    """Return all cells of a plan; ``anchors`` name the row of each cell id."""

    def notes(row: PlanRow, _place: Place) -> list[str]:
        return [f"Cannot be predicted: {row.refusal}"] if row.refusal else []

    named = [(anchors[row.cell], row) for row in rows]
    return grid("plan", "All cells", plan_columns(plan, rows), named, notes)


def plan_columns(plan: Plan, rows: Sequence[PlanRow]) -> list[Column[PlanRow]]:
    """Return the columns of a plan's cells; those of cards only where it has any."""
    cells = {planned.cell.id: planned.cell for planned in reversed(plan.cells)}
    columns: list[Column[PlanRow]] = [
        Column(title="Method", text=lambda row: cells[row.cell].labels.method, choice="Method", place="cell"),
        Column(title="Model", text=lambda row: cells[row.cell].labels.model, choice="Model"),
        _count("Sequence length", lambda row: cells[row.cell].training.sequence_length),
        _count("Batch", lambda row: cells[row.cell].training.micro_batch),
        Column(title="Window", text=lambda row: cells[row.cell].labels.window, choice="Window"),
    ]
    if plan.cards:
        columns += _card_columns(plan)
    columns.append(_size("Allocated", lambda one: one.allocated_bytes))
    if plan.cards:
        columns.append(
            Column(
                title="Reserved",
                value=lambda row: row.forecast.reserved_high_bytes if row.forecast else None,
                text=lambda row: (
                    NOT_APPLICABLE
                    if row.forecast is None or row.forecast.reserved_high_bytes is None
                    else GIBIBYTES.span(row.forecast.reserved_low_bytes, row.forecast.reserved_high_bytes)
                ),
            )
        )
    if any(row.forecast and row.forecast.paged_bytes for row in rows):
        columns.append(_size("Paged, apart", lambda one: one.paged_bytes))
    return [*columns, Column(title="Peak set by", text=_cause)]


def _count(title: str, read: Callable[[PlanRow], int]) -> Column[PlanRow]:
    return Column(title=title, value=read, text=lambda row: f"{read(row):,}", choice=title)


def _card_columns(plan: Plan) -> list[Column[PlanRow]]:
    titles = {
        card.name: f"{card.name} ({GIBIBYTES.scaled(card.memory_bytes):.0f} GiB)" for card in plan.cards
    }

    def fitting(row: PlanRow) -> list[CardFit]:
        return [verdict for verdict in row.verdicts if verdict.answer == "fits"]

    def text(row: PlanRow) -> str:
        if row.forecast is None:
            return NOT_APPLICABLE
        if fitting(row) and plan.ladder:
            return titles[fitting(row)[0].card]
        each = ", ".join(f"{verdict.card}: {verdict.answer}" for verdict in row.verdicts)
        return "none of them" if plan.ladder else each

    def tags(row: PlanRow) -> tuple[str, ...]:
        if row.forecast is None:
            return ("no prediction",)
        return tuple(titles[verdict.card] for verdict in fitting(row)) or ("no card tried",)

    def tone(row: PlanRow) -> Tone:
        if row.forecast is None:
            return ""
        close = any(verdict.answer == "too close to call" for verdict in row.verdicts)
        return "good" if fitting(row) else "close" if close else "bad"

    def needed(row: PlanRow) -> int | None:
        verdict = next(iter(fitting(row) or row.verdicts[-1:]), None)
        return verdict.needed_bytes if verdict else None

    return [
        Column(
            title="Smallest card that fits" if plan.ladder else "Fits on",
            value=lambda row: GIBIBYTES.scaled(fitting(row)[0].usable_bytes) if fitting(row) else None,
            text=text,
            words=True,
            choice="Fits on",
            tags=tags,
            tone=tone,
        ),
        Column(
            title="Needed, context included",
            value=needed,
            text=lambda row: NOT_APPLICABLE if (size := needed(row)) is None else GIBIBYTES.show(size),
            at_most=GIBIBYTES.name,
            scale=GIBIBYTES.size_bytes,
        ),
    ]


def _size(title: str, read: Callable[[Forecast], int]) -> Column[PlanRow]:
    return Column(
        title=title,
        value=lambda row: read(row.forecast) if row.forecast else None,
        text=lambda row: NOT_APPLICABLE if row.forecast is None else GIBIBYTES.show(read(row.forecast)),
    )


def _cause(row: PlanRow) -> str:
    one = row.forecast
    if one is None:
        return NOT_APPLICABLE
    text = f"{words(one.peak_phase)}: {operator(one.peak_op)} in {one.peak_module or 'no module'}"
    if one.largest_category:
        text += f"; {words(one.largest_category)} {share(one.largest_share, 0)}"
    return text
