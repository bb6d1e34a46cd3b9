"""A plan for the terminal and as Markdown; no arithmetic, and neither pandas nor scipy is imported."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, get_args

from bench.compare.plans import Forecast, PlanRow, plan_rows
from bench.records.predictions import Plan, PredictedPhase
from bench.records.readings import Category
from bench.report.columns import Column, Grid, Place, Tone, grid
from bench.report.fit import MOST_SENTENCES, fit_sentences, notes_on, plan_sentences, why_untried
from bench.report.text import (
    GIBIBYTES,
    MEBIBYTES,
    NOT_APPLICABLE,
    SMALL_MEBIBYTES,
    MemoryUnit,
    Table,
    bullets,
    markdown,
    markdown_table,
    operator,
    plain,
    share,
    terminal_table,
    words,
)

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

LARGE_BYTES = 16 * GIBIBYTES.size_bytes
SMALL_BYTES = 100 * MEBIBYTES.size_bytes
_Show = Callable[[PlanRow], str]


def render_markdown(plan: Plan) -> str:
    """Return the whole plan as a page."""
    title = f"# {markdown(plan.title)}: predicted memory"
    return f"{title}\n\n{render_summary(plan)}\n\n{render_details(plan)}\n"


def render_summary(plan: Plan) -> str:
    """Return the verdicts in a sentence, the table of all cells, what was refused, and how to read it."""
    rows = plan_rows(plan)
    parts = [markdown(line) for line in plan_sentences(plan, rows)]
    told = fit_sentences(plan)
    if told:
        lines = [f"**{markdown(one.about)}**: {markdown(one.text)}" for one in told[:MOST_SENTENCES]]
        beyond = (
            [f"{len(told[MOST_SENTENCES:])} more follow from the table."] if told[MOST_SENTENCES:] else []
        )
        parts.append(bullets([*lines, *beyond]))
    parts += [markdown_table(_table(plan, rows)), *_refusals(rows)]
    return "\n\n".join(
        [*parts, "How to read it:\n\n" + bullets(markdown(line) for line in notes_on(plan, rows))]
    )


def render_details(plan: Plan) -> str:
    """Return what sets each cell's peak, its phases and categories, and what changes would free."""
    sections = [(title, table) for title, table in detail_tables(plan) if table.rows]
    shown = [f"## {title}\n\n{markdown_table(table)}" for title, table in sections]
    missing = why_untried(plan)
    return "\n\n".join([*shown, *([markdown(missing)] if missing else [])])


def render_terminal(plan: Plan, *, details: bool = False) -> "Group":
    """Return the plan for a rich console."""
    from rich.console import Group
    from rich.text import Text

    rows = plan_rows(plan)
    parts = _short(plan, rows)
    if details:
        parts += [terminal_table(table, title) for title, table in detail_tables(plan) if table.rows]
    lines = [f"- {note}" for note in notes_on(plan, rows)]
    missing = (
        why_untried(plan) if details else "--details shows what sets each peak and what would free memory."
    )
    return Group(*parts, *(Text(plain(line)) for line in [*lines, *([missing] if missing else [])]))


def render_short(plan: Plan) -> "Group":
    """Return the table, what was refused and the sum, as ``bench run`` shows it first."""
    from rich.console import Group

    return Group(*_short(plan, plan_rows(plan)))


def _short(plan: Plan, rows: Sequence[PlanRow]) -> "list[RenderableType]":
    from rich.text import Text

    refusals = [f"{row.cell} cannot be predicted: {row.refusal}" for row in rows if row.refusal]
    lines = [*refusals, *plan_sentences(plan, rows)]
    table = terminal_table(_table(plan, rows), f"{plan.title}: predicted memory")
    return [table, *(Text(plain(line)) for line in lines)]


def _unit(rows: Sequence[PlanRow]) -> MemoryUnit:
    """Return GiB for GPUs and large models, else MiB: one unit for the whole plan."""
    forecasts = [row.forecast for row in rows if row.forecast]
    large = any(one.allocated_peak_bytes >= LARGE_BYTES or one.reserved_high_bytes for one in forecasts)
    if large:
        return GIBIBYTES
    smallest = min((one.allocated_peak_bytes for one in forecasts), default=SMALL_BYTES)
    return SMALL_MEBIBYTES if smallest < SMALL_BYTES else MEBIBYTES


def _table(plan: Plan, rows: Sequence[PlanRow]) -> Table:
    """Return all cells; a column that has nothing to say is left out."""
    unit = _unit(rows)
    forecasts = [row.forecast for row in rows if row.forecast]
    columns: list[tuple[str, _Show]] = [("Cell", lambda row: row.cell)]
    on_cuda = any(forecast.reserved_high_bytes for forecast in forecasts)
    name = "Allocated" if on_cuda else "Live tensors"
    columns.append(
        (name, _forecast(lambda one: unit.span(one.allocated_low_bytes, one.allocated_peak_bytes)))
    )
    if on_cuda:
        reserved = _forecast(lambda one: unit.span(one.reserved_low_bytes, one.reserved_high_bytes))
        columns.append(("Reserved", reserved))
    if len(plan.cards) == 1:
        columns.append(("Context", _forecast(lambda one: unit.show(one.context_bytes))))
        columns.append(("Total", _forecast(lambda one: unit.show(one.total_bytes))))
    if any(forecast.paged_bytes for forecast in forecasts):
        columns.append(("Paged, apart", _forecast(lambda one: unit.show(one.paged_bytes))))
    columns.append(("Peak in", _forecast(lambda one: words(one.peak_phase))))
    if plan.ladder:
        columns.append(("Smallest card that fits", lambda row: _smallest(row, unit)))
    else:
        columns.extend((card.name, _on_card(card.name, len(plan.cards) == 1, unit)) for card in plan.cards)
    return Table(
        header=tuple(title for title, _ in columns),
        rows=tuple(tuple(show(row) for _, show in columns) for row in rows),
    )


def _forecast(show: Callable[[Forecast], str]) -> _Show:
    return lambda row: NOT_APPLICABLE if row.forecast is None else show(row.forecast)


def _smallest(row: PlanRow, unit: MemoryUnit) -> str:
    if row.forecast is None:
        return NOT_APPLICABLE
    smallest = (f"{verdict.card}, {unit.show(verdict.needed_bytes)}" for verdict in row.fitting)
    return next(smallest, "none of them")


def _on_card(card: str, alone: bool, unit: MemoryUnit) -> _Show:  # noqa: FBT001 - called in one place
    def show(row: PlanRow) -> str:
        verdict = row.verdict(card)
        if verdict is None:
            return NOT_APPLICABLE
        return verdict.answer if alone else f"{verdict.answer}, {unit.show(verdict.needed_bytes)}"

    return show


def _refusals(rows: Sequence[PlanRow]) -> list[str]:
    lines = [f"{markdown(row.cell)}: {markdown(row.refusal)}" for row in rows if row.refusal]
    return [f"Cells that cannot be predicted:\n\n{bullets(lines)}"] if lines else []


def detail_tables(plan: Plan) -> Iterator[tuple[str, Table]]:
    """Yield what sets each peak, its phases and categories, and what changes would free, with titles."""
    rows = [row for row in plan_rows(plan) if row.forecast]
    unit = _unit(rows)
    yield "What sets each peak", _cause_table(rows)
    yield f"Most allocated in each phase, {unit.name}", _phase_table(rows, unit)
    yield f"Live at the peak by category, {unit.name}", _category_table(rows, unit)
    yield f"What a change would do, {unit.name}", _change_table(plan, rows, unit)


def _cause_table(rows: Sequence[PlanRow]) -> Table:
    return Table(
        header=("Cell", "Phase", "Operator", "Module", "Largest part"),
        left=5,
        rows=tuple(
            (
                row.cell,
                words(one.peak_phase),
                operator(one.peak_op),
                one.peak_module or "outside any module",
                f"{words(one.largest[0])}, {share(one.largest[1], 0)}" if one.largest else NOT_APPLICABLE,
            )
            for row in rows
            if (one := row.forecast)
        ),
    )


def _phase_table(rows: Sequence[PlanRow], unit: MemoryUnit) -> Table:
    forecasts = [row.forecast for row in rows if row.forecast]
    phases = [
        phase
        for phase in get_args(PredictedPhase)
        if any(phase in forecast.phase_peaks_bytes for forecast in forecasts)
    ]
    return Table(
        header=("Cell", *(words(phase) for phase in phases)),
        rows=tuple(
            (
                row.cell,
                *(
                    unit.figure(one.phase_peaks_bytes[phase])
                    if phase in one.phase_peaks_bytes
                    else NOT_APPLICABLE
                    for phase in phases
                ),
            )
            for row in rows
            if (one := row.forecast)
        ),
    )


def _category_table(rows: Sequence[PlanRow], unit: MemoryUnit) -> Table:
    forecasts = [row.forecast for row in rows if row.forecast]
    present = [
        category
        for category in get_args(Category)
        if any(forecast.categories_at_peak_bytes.get(category) for forecast in forecasts)
    ]
    return Table(
        header=("Cell", *(words(category) for category in present)),
        rows=tuple(
            (row.cell, *(unit.figure(one.categories_at_peak_bytes.get(category, 0)) for category in present))
            for row in rows
            if (one := row.forecast)
        ),
    )


def _change_table(plan: Plan, rows: Sequence[PlanRow], unit: MemoryUnit) -> Table:
    on_cards = [] if plan.ladder else [card.name for card in plan.cards]
    lines = []
    for row in rows:
        for change, freed_bytes in row.changes:
            fitting = [verdict for verdict in change.verdicts if verdict.answer == "fits"]
            by_card = {verdict.card: verdict.answer for verdict in change.verdicts}
            lines.append(
                (
                    row.cell,
                    change.what,
                    unit.figure(change.prediction.allocated_peak_bytes),
                    unit.figure(change.prediction.needed_bytes),
                    unit.figure(freed_bytes),
                    *(by_card.get(card, NOT_APPLICABLE) for card in on_cards),
                    *([fitting[0].card if fitting else "none of them"] if plan.ladder else []),
                )
            )
    needed = "Reserved" if plan.cards else "Needed"
    last = ("Smallest card that fits",) if plan.ladder else tuple(on_cards)
    return Table(header=("Cell", "Change", "Allocated", needed, "Freed", *last), rows=tuple(lines), left=2)


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
    columns.append(_size("Allocated", lambda one: one.allocated_peak_bytes))
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


def _needed(row: PlanRow) -> int | None:
    verdict = next(iter(row.fitting or row.verdicts[-1:]), None)
    return verdict.needed_bytes if verdict else None


def _card_columns(plan: Plan) -> list[Column[PlanRow]]:
    titles = {
        card.name: f"{card.name} ({GIBIBYTES.scaled(card.memory_bytes):.0f} GiB)" for card in plan.cards
    }

    def text(row: PlanRow) -> str:
        if row.forecast is None:
            return NOT_APPLICABLE
        if row.fitting and plan.ladder:
            return titles[row.fitting[0].card]
        each = ", ".join(f"{verdict.card}: {verdict.answer}" for verdict in row.verdicts)
        return "none of them" if plan.ladder else each

    def tags(row: PlanRow) -> tuple[str, ...]:
        if row.forecast is None:
            return ("no prediction",)
        return tuple(titles[verdict.card] for verdict in row.fitting) or ("no card tried",)

    def tone(row: PlanRow) -> Tone:
        if row.forecast is None:
            return ""
        close = any(verdict.answer == "too close to call" for verdict in row.verdicts)
        return "good" if row.fitting else "close" if close else "bad"

    return [
        Column(
            title="Smallest card that fits" if plan.ladder else "Fits on",
            value=lambda row: GIBIBYTES.scaled(row.fitting[0].usable_bytes) if row.fitting else None,
            text=text,
            words=True,
            choice="Fits on",
            tags=tags,
            tone=tone,
        ),
        Column(
            title="Needed, context included",
            value=_needed,
            text=lambda row: NOT_APPLICABLE if (size := _needed(row)) is None else GIBIBYTES.show(size),
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
    if one.largest:
        text += f"; {words(one.largest[0])} {share(one.largest[1], 0)}"
    return text
