"""Predicted speed: in plans, and beside published measurements."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from bench.compare.plans import PlanRow
from bench.records.predictions import CardFit, KernelClass, Plan, Speed
from bench.records.published.score import ScoredRow, summarise_speeds
from bench.report.columns import Column
from bench.report.text import NOT_APPLICABLE, Table, grouped, operator, share, significant, table_of

_BAND = (
    "Tokens/s are predicted from the operators of the trace, at full length and with padding counted; the "
    "range is to hold 90 % of runs (report/prediction.md, Speed). MFU leaves recomputation out."
)
_SECONDS_AN_HOUR = 3600
_IN_BAND = {True: "hit", False: "miss", None: NOT_APPLICABLE}


def speed_columns(plan: Plan, card: str, rows: Sequence[PlanRow]) -> list[Column[PlanRow]]:
    """Return the columns of how fast cells train on a card; none where no speed is told."""
    if not any(_told(row.verdict(card)) for row in rows):
        return []

    def told(row: PlanRow) -> Speed | None:
        return _told(row.verdict(card))

    return [
        Column(title="Tokens/s", text=lambda row: _rate(told(row)), value=lambda row: _high(told(row))),
        Column(title="MFU", text=lambda row: share(one.mfu, 0) if (one := told(row)) else NOT_APPLICABLE),
        Column(title="Bound by", text=lambda row: one.bound_by if (one := told(row)) else NOT_APPLICABLE),
        *(Column(title=title, text=_after(told, show)) for title, show in _spent(plan)),
    ]


def speed_tables(plan: Plan, rows: Sequence[PlanRow]) -> Iterator[tuple[str, Table]]:
    """Yield how fast each cell trains on each card, what takes the time, and the dearest operators."""
    found = [
        (row.cell, card.name, speed)
        for row in rows
        for card in plan.cards
        if (speed := _told(row.verdict(card.name)))
    ]
    kinds = list(dict.fromkeys(kind for _, _, speed in found for kind in speed.shares))
    yield (
        "Speed, and shares of the time on the GPU",
        table_of(
            found,
            ("Cell", lambda one: one[0]),
            ("Card", lambda one: one[1]),
            ("Tokens/s", lambda one: _rate(one[2])),
            ("MFU", lambda one: share(one[2].mfu, 0)),
            ("Bound by", lambda one: one[2].bound_by),
            *((title, _after(itemgetter(2), show)) for title, show in _spent(plan)),
            *(_of_kind(kind) for kind in kinds),
            left=2,
        ),
    )
    dearest = [(cell, card, dear) for cell, card, speed in found for dear in speed.dearest]
    yield (
        "Operators that take most of it",
        table_of(
            dearest,
            ("Cell", lambda one: one[0]),
            ("Card", lambda one: one[1]),
            ("Operator", lambda one: operator(one[2].op)),
            ("Module", lambda one: one[2].module),
            ("Share", lambda one: share(one[2].share, 0)),
            left=4,
        ),
    )


def speed_notes(plan: Plan) -> Iterator[str]:
    """Yield how speed came about, what widens a band, and why there is none."""
    verdicts = [verdict for planned in plan.cells for verdict in planned.verdicts]
    speeds = [verdict.tokens_per_second for verdict in verdicts if verdict.tokens_per_second]
    if any(not speed.refused for speed in speeds):
        yield _BAND
        if plan.tokens and len(plan.cards) > 1:
            yield "Hours and cost on each card stand in the table of speeds, which --details shows."
    assumed = grouped((speed.assumed, speed.card) for speed in speeds if speed.assumed)
    yield from (f"Speed on {', '.join(dict.fromkeys(names))}: {why}." for why, names in assumed.items())
    refused = grouped((speed.refused, speed.card) for speed in speeds if speed.refused)
    for why, names in refused.items():
        yield f"No speed on {', '.join(dict.fromkeys(names))}, {len(names)} cells: {why}."
    if not plan.cards:
        yield "On a CPU no speed is predicted; bench run measures it."


def validation_tables(rows: Sequence[ScoredRow]) -> tuple[Table, Table, dict[str, list[str]]]:
    """Return errors of predicted speeds in groups, every one of them, and those refused, by the reason."""
    summary = table_of(
        summarise_speeds(rows),
        ("Rows", lambda one: one.name),
        ("Number", lambda one: str(one.count)),
        ("Median", lambda one: share(one.median_error)),
        ("90th percentile", lambda one: share(one.high_error)),
        ("Largest", lambda one: share(one.largest_error)),
        ("Signed", lambda one: share(one.signed_error)),
        ("Median, source left out", lambda one: share(one.held_out_median)),
        ("90th percentile, likewise", lambda one: share(one.held_out_high)),
        ("In band", lambda one: f"{one.in_band} of {one.count}"),
        ("Width of the band", lambda one: f"{one.median_width:.2f}"),
        ("Pairs in order", lambda one: f"{one.ordered} of {one.pairs}" if one.pairs else NOT_APPLICABLE),
        left=1,
    )
    pairs = [(row, one) for row in rows for one in row.speeds]
    told = [(row, one, one.told) for row, one in pairs if one.told]
    every = table_of(
        told,
        ("Run", lambda each: each[0].run),
        ("Card", lambda each: each[2].card),
        ("Measured, tokens/s", lambda each: f"{each[1].measured_rate:,.0f}"),
        ("Predicted", lambda each: _rate(each[2])),
        ("Error of the time", lambda each: share(each[1].error)),
        ("Band", lambda each: _IN_BAND[each[1].in_band]),
        ("MFU", lambda each: share(each[2].mfu, 0)),
        ("Bound by", lambda each: each[2].bound_by),
        ("Calibrated on", lambda each: "yes" if each[2].calibrated_on else "no"),
        left=2,
    )
    refused = grouped(
        (one.predicted.refused if one.predicted else row.refused or "not predicted", row.run)
        for row, one in pairs
        if one.told is None
    )
    return summary, every, refused


def _spent(plan: Plan) -> list[tuple[str, Callable[[Speed | None], str]]]:
    """Return what the plan's tokens take, by title: hours, and their price; nothing of a plan without."""
    factors = {"Hours": 1.0, "Cost": plan.price_an_hour}
    return [
        (title, partial(_range, plan.tokens / _SECONDS_AN_HOUR * factor))
        for title, factor in factors.items()
        if plan.tokens and factor is not None
    ]


def _after(told: Callable[[Any], Speed | None], show: Callable[[Speed | None], str]) -> Callable[[Any], str]:
    return lambda row: show(told(row))


def _range(amount: float, speed: Speed | None) -> str:
    if speed is None:
        return NOT_APPLICABLE
    return f"{significant(amount / speed.high)} to {significant(amount / speed.low)}"


def _told(verdict: CardFit | None) -> Speed | None:
    speed = verdict.tokens_per_second if verdict else None
    return None if speed is None or speed.refused else speed


def _rate(speed: Speed | None) -> str:
    return NOT_APPLICABLE if speed is None else f"{speed.low:,.0f} to {speed.high:,.0f}"


def _high(speed: Speed | None) -> float | None:
    return None if speed is None else speed.high


def _of_kind(kind: KernelClass) -> tuple[str, Callable[[tuple[str, str, Speed]], str]]:
    return kind.capitalize(), lambda one: share(one[2].shares.get(kind, 0.0), 0)
