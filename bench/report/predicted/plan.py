"""A plan in the terminal, as Markdown and as the grid of an HTML page; no arithmetic, pandas or scipy."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar, get_args

from rich.console import Group
from rich.text import Text

from bench.compare.plans import Forecast, PlanRow, plan_rows
from bench.errors import listed
from bench.records.machine_card import THIS_CPU
from bench.records.predictions import Change, Plan, PredictedPhase
from bench.records.readings import Category
from bench.report.columns import Column, Grid, Place, TerminalTable, Tone, grid, page_table
from bench.report.predicted.fit import (
    MOST_SENTENCES,
    card_size,
    fit_sentences,
    loop_sentences,
    notes_on,
    plan_sentences,
    why_untried,
)
from bench.report.predicted.methods import methods_table
from bench.report.predicted.speed import cards_table, speed_columns, speed_tables
from bench.report.tables import Line, Writer, described_table
from bench.report.text import (
    GIBIBYTES,
    NOT_APPLICABLE,
    MemoryUnit,
    Table,
    grouped,
    plain,
    render_page,
    set_by,
    share,
    table_of,
    unit_for,
    words,
)
from bench.scenario.cell import Cell
from bench.scenario.loop import LoopSpec

N = TypeVar("N", bound=str)
_Changed = tuple[str, Change, int]
_NOWHERE = "none of them"
CARDS = "Which card for the job, the cheapest first"
_SMALLEST = "Smallest card that fits"
_FEW_ROWS = 20  # of more a page shows on demand


def render_markdown(plan: Plan) -> str:
    return _page(plan, "title", "summary", "details") + "\n"


def render_summary(plan: Plan) -> str:
    """Return the verdicts in a sentence, the table of all cells, what was refused, and how to read it."""
    return _page(plan, "summary")


def render_details(plan: Plan) -> str:
    """Return what sets each cell's peak, its phases and categories, and what changes would free."""
    return _page(plan, "details")


def _page(plan: Plan, *parts: str) -> str:
    rows, told = plan_rows(plan), fit_sentences(plan)
    return render_page(
        "plan.md.j2",
        parts=parts,
        title=plan.title,
        sentences=plan_sentences(plan, rows),
        told=(*told[:MOST_SENTENCES], *loop_sentences(plan, rows)),
        beyond=len(told[MOST_SENTENCES:]),
        cells=_table(plan, rows),
        methods=methods_table(plan, rows),
        few=_FEW_ROWS,
        rows=rows,
        notes=notes_on(plan, rows),
        tables=lambda: detail_tables(plan, rows),
        untried=why_untried(plan),
    )


def render_terminal(plan: Plan, *, details: bool = False) -> Group:
    """Return the table, what it comes to, and notes; without a prediction only why there is none."""
    if not plan.any_predicted:
        return render_short(plan)
    more = "--details explains every column, shows what sets each peak, and what would free memory."
    rows = plan_rows(plan)
    shown = detail_tables(plan, rows) if details else [(CARDS, cards_table(plan, rows))]
    tables = [(title, table) for title, table in shown if table.rows]
    notes = [
        f"- {note}" for note in notes_on(plan, rows, "plan_notes.j2" if details else "plan_notes_short.j2")
    ]
    return Group(
        render_short(plan),
        *(TerminalTable(table, title) for title, table in tables),
        *(Text(plain(line)) for line in [*notes, *(why_untried(plan) if details else [more])]),
    )


def render_short(plan: Plan) -> Group:
    """Return the table, what was refused and the sum, as ``bench run`` shows it first."""
    rows = plan_rows(plan)
    alike = grouped((row.refusal, row.cell) for row in rows if row.refusal)
    refusals = [f"{listed(cells, 2)} cannot be predicted: {why}" for why, cells in alike.items()]
    if not plan.any_predicted:
        return Group(*(Text(plain(line)) for line in refusals))
    return Group(
        TerminalTable(_table(plan, rows), f"{plan.title}: predicted memory"),
        *(Text(plain(line)) for line in [*refusals, *plan_sentences(plan, rows)]),
    )


def _forecasts(rows: Sequence[PlanRow]) -> list[tuple[str, Forecast]]:
    return [(row.cell, row.forecast) for row in rows if row.forecast]


def _unit(rows: Sequence[PlanRow]) -> MemoryUnit:
    forecasts = [one for _, one in _forecasts(rows)]
    on_gpu = any(one.reserved_high_bytes for one in forecasts)
    return unit_for([one.allocated_peak_bytes for one in forecasts], on_gpu=on_gpu)


def _column(
    title: str, show: Callable[[Forecast], str], value: Callable[[Forecast], float | None] | None = None
) -> Column[PlanRow]:
    """Return a column of what is predicted: a dash, and no value, where a cell was refused."""
    return Column(
        title=title,
        text=lambda row: show(row.forecast) if row.forecast else NOT_APPLICABLE,
        value=value and (lambda row: value(row.forecast) if row.forecast else None),
    )


def _size(title: str, read: Callable[[Forecast], int | None], unit: MemoryUnit) -> Column[PlanRow]:
    return _column(title, lambda one: unit.show(read(one)), read)


def _reserved(unit: MemoryUnit) -> Column[PlanRow]:
    return _column(
        "Reserved",
        lambda one: unit.span(one.reserved_low_bytes, one.reserved_high_bytes),
        lambda one: one.reserved_high_bytes,
    )


def _paged(rows: Sequence[PlanRow], unit: MemoryUnit) -> list[Column[PlanRow]]:
    any_paged = any(one.paged_bytes for _, one in _forecasts(rows))
    return [_size("Paged, apart", lambda one: one.paged_bytes, unit)] if any_paged else []


def _quantised(rows: Sequence[PlanRow]) -> list[Column[PlanRow]]:
    any_quantised = any(one.quantised_share for _, one in _forecasts(rows))
    shown = _column("4/8 bit", lambda one: share(one.quantised_share, 0), lambda one: one.quantised_share)
    return [shown] if any_quantised else []


def _table(plan: Plan, rows: Sequence[PlanRow]) -> Table:
    """Return all cells; a column that has nothing to say is left out."""
    unit, alone = _unit(rows), len(plan.cards) == 1

    def smallest(row: PlanRow) -> str:
        fits = (f"{fit.card}, {unit.show(fit.needed_bytes)}" for fit in row.fitting)
        return next(fits, _NOWHERE) if row.forecast else NOT_APPLICABLE

    def on_card(card: str, row: PlanRow) -> str:
        if (fit := row.verdict(card)) is None:
            return NOT_APPLICABLE
        return fit.answer if alone else f"{fit.answer}, {unit.show(fit.needed_bytes)}"

    on_cuda = any(one.reserved_high_bytes for _, one in _forecasts(rows))
    columns: list[Column[PlanRow]] = [
        Column(title="Cell", text=lambda row: row.cell),
        _column(
            "Tensors" if on_cuda else "Live tensors",
            lambda one: unit.span(one.allocated_low_bytes, one.allocated_peak_bytes),
        ),
    ]
    if on_cuda:
        columns.append(_reserved(unit))
    if alone:
        columns.append(_size("Context", lambda one: one.context_bytes, unit))
        columns.append(_size("Needed on the card", lambda one: one.total_bytes, unit))
    columns += [*_paged(rows, unit), *_quantised(rows), _column("Peak in", lambda one: words(one.peak_phase))]
    if plan.ladder:
        columns.append(Column(title=_SMALLEST, text=smallest))
    else:
        columns += [Column(title=card.name, text=partial(on_card, card.name)) for card in plan.cards]
    if alone or not plan.cards:
        columns += speed_columns(plan, plan.cards[0].name if alone else THIS_CPU, rows)
    return page_table(columns, rows)


def detail_tables(plan: Plan, rows: Sequence[PlanRow]) -> Iterator[tuple[str, Table]]:
    """Yield what sets each peak, its phases and categories, and what changes would free, with titles."""
    unit, forecasts = _unit(rows), _forecasts(rows)
    phases = [(cell, one.phase_peaks_bytes) for cell, one in forecasts]
    parts = [
        (cell, {part: size for part, size in one.categories_at_peak_bytes.items() if size})
        for cell, one in forecasts
    ]
    causes = [Line(*each) for each in forecasts]
    yield CARDS, cards_table(plan, rows)
    yield "What sets each peak", described_table("causes of a plan", causes, {"largest": _largest})
    yield (
        f"Most allocated in each phase, {unit.name}",
        _sizes_table(phases, get_args(PredictedPhase), NOT_APPLICABLE, unit),
    )
    yield (
        f"Live at the peak by category, {unit.name}",
        _sizes_table(parts, get_args(Category), unit.figure(0), unit),
    )
    reached = [Line(cell, kind) for cell, one in forecasts if one.reach for kind in one.reach.kinds]
    writers: dict[str, Writer] = {"gibibytes_alone": GIBIBYTES.figure}
    yield "What the method does to the weights", described_table("weights of a plan", reached, writers)
    yield from speed_tables(plan, rows)
    yield f"What a change would do, {unit.name}", _change_table(plan, rows, unit)


def _sizes_table(
    rows: Sequence[tuple[str, Mapping[N, int]]], names: Sequence[N], absent: str, unit: MemoryUnit
) -> Table:
    """Return the sizes of each cell under their names; a name that no cell has is left out."""

    def column(name: N) -> tuple[str, Callable[[tuple[str, Mapping[N, int]]], str]]:
        return words(name), lambda row: unit.figure(row[1][name]) if name in row[1] else absent

    known = [name for name in names if any(name in sizes for _, sizes in rows)]
    return table_of(rows, ("Cell", lambda row: row[0]), *map(column, known))


def _change_table(plan: Plan, rows: Sequence[PlanRow], unit: MemoryUnit) -> Table:
    def on_card(card: str) -> tuple[str, Callable[[_Changed], str]]:
        return card, lambda row: {fit.card: fit.answer for fit in row[1].verdicts}.get(card, NOT_APPLICABLE)

    def smallest(row: _Changed) -> str:
        return next((fit.card for fit in row[1].verdicts if fit.answer == "fits"), _NOWHERE)

    return table_of(
        [(row.cell, *change) for row in rows for change in row.changes],
        ("Cell", lambda row: row[0]),
        ("Change", lambda row: row[1].what),
        ("Allocated", lambda row: unit.figure(row[1].prediction.allocated_peak_bytes)),
        ("Reserved" if plan.cards else "Needed", lambda row: unit.figure(row[1].prediction.needed_bytes)),
        ("Freed", lambda row: unit.figure(row[2])),
        *([(_SMALLEST, smallest)] if plan.ladder else [on_card(card.name) for card in plan.cards]),
        left=2,
    )


def _largest(one: Forecast, between: str = ", ", none: str = NOT_APPLICABLE) -> str:
    return f"{words(one.largest[0])}{between}{share(one.largest[1], 0)}" if one.largest else none


def plan_grid(plan: Plan, rows: Sequence[PlanRow], anchors: Mapping[str, str]) -> Grid[PlanRow]:
    def notes(row: PlanRow, _place: Place) -> list[str]:
        return [f"Cannot be predicted: {row.refusal}"] if row.refusal else []

    named = [(anchors[row.cell], row) for row in rows]
    return grid("plan", "All cells", plan_columns(plan, rows), named, notes)


def plan_columns(plan: Plan, rows: Sequence[PlanRow]) -> list[Column[PlanRow]]:
    """Return the columns of a plan's cells; those of cards only where it has any."""
    cells = {planned.cell.id: planned.cell for planned in reversed(plan.cells)}
    any_loop = any(cell.loop != LoopSpec() for cell in cells.values())

    def label(title: str, read: Callable[[Cell], str], place: Place = "") -> Column[PlanRow]:
        return Column(title=title, text=lambda row: read(cells[row.cell]), choice=title, place=place)

    def count(title: str, read: Callable[[Cell], int]) -> Column[PlanRow]:
        return replace(label(title, lambda cell: f"{read(cell):,}"), value=lambda row: read(cells[row.cell]))

    return [
        label("Method", lambda cell: cell.labels.method, place="cell"),
        *([label("Loop", lambda cell: cell.loop.driver)] if any_loop else []),
        label("Model", lambda cell: cell.labels.model),
        count("Sequence length", lambda cell: cell.training.sequence_length),
        count("Batch", lambda cell: cell.training.micro_batch),
        label("Window", lambda cell: cell.labels.window),
        *(_card_columns(plan) if plan.cards else []),
        _size("Allocated", lambda one: one.allocated_peak_bytes, GIBIBYTES),
        *([_reserved(GIBIBYTES)] if plan.cards else []),
        *_paged(rows, GIBIBYTES),
        *_quantised(rows),
        replace(_column("Peak set by", lambda one: set_by(one, _largest(one, " ", ""))), page=False),
    ]


def _card_columns(plan: Plan) -> list[Column[PlanRow]]:
    titles = {card.name: f"{card.name} ({card_size(card)})" for card in plan.cards}

    def text(row: PlanRow) -> str:
        if row.forecast and plan.ladder:
            return next((titles[fit.card] for fit in row.fitting), _NOWHERE)
        return ", ".join(f"{fit.card}: {fit.answer}" for fit in row.verdicts) or NOT_APPLICABLE

    def tags(row: PlanRow) -> tuple[str, ...]:
        fitting = tuple(titles[fit.card] for fit in row.fitting)
        return fitting or ("no card tried" if row.forecast else "no prediction",)

    def tone(row: PlanRow) -> Tone:
        close = any(fit.answer == "too close to call" for fit in row.verdicts)
        return "" if row.forecast is None else "good" if row.fitting else "close" if close else "bad"

    def needed(row: PlanRow) -> int | None:
        """Return what the smallest card that fits has to hold, or where none does the largest."""
        return next((fit.needed_bytes for fit in row.fitting or row.verdicts[-1:]), None)

    return [
        Column(
            title=_SMALLEST if plan.ladder else "Fits on",
            value=lambda row: next((GIBIBYTES.scaled(fit.usable_bytes) for fit in row.fitting), None),
            text=text,
            words=True,
            choice="Fits on",
            tags=tags,
            tone=tone,
        ),
        Column(
            title="Needed with context",
            value=needed,
            text=lambda row: NOT_APPLICABLE if (size := needed(row)) is None else GIBIBYTES.show(size),
            at_most=GIBIBYTES.name,
            bar=True,
            scale=GIBIBYTES.size_bytes,
        ),
    ]
