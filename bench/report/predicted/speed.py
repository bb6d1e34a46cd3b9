"""Predicted speed: in plans, and beside published measurements."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from bench.compare.plans import PlanRow
from bench.compare.predictions import SpeedSummary, card_choices, rank_settings, summarise_speeds
from bench.records.machine_card import THIS_CPU
from bench.records.predictions import Fit, KernelClass, Plan, Speed
from bench.records.published.score import ScoredRow
from bench.report.columns import Column
from bench.report.tables import Line, Writer, described_table
from bench.report.text import NOT_APPLICABLE, NOT_MEASURED, Table, grouped, share, significant

_SECONDS_AN_HOUR = 3600
PER_GPU = "Tokens/s per GPU"


def any_speed(rows: Sequence[PlanRow]) -> bool:
    """Return whether the speed of a cell is told, on a card or on this CPU."""
    names = {verdict.card for row in rows for verdict in row.verdicts} | {THIS_CPU}
    return any(row.speed(name) for row in rows for name in names)


def speed_columns(plan: Plan, card: str, rows: Sequence[PlanRow]) -> list[Column[PlanRow]]:
    """Return the columns of how fast cells train on a card; none where no speed is told."""
    if not any(row.speed(card) for row in rows):
        return []

    columns: dict[str, _Spent] = {
        "Tokens/s": lambda _, speed: _rate(speed),
        **({PER_GPU: lambda _, speed: _rate_per_gpu(speed)} if over_several(rows) else {}),
        "MFU": lambda _, speed: share(speed.mfu, 0) if speed else NOT_APPLICABLE,
        "Bound by": lambda _, speed: speed.bound_by if speed else NOT_APPLICABLE,
        **_spent(plan, rows),
    }

    def shown(write: _Spent, row: PlanRow) -> str:
        return write(row, row.speed(card))

    return [Column(title, partial(shown, write)) for title, write in columns.items()]


def over_several(rows: Sequence[PlanRow]) -> bool:
    """Return whether the speed of any cell is that of several GPUs."""
    verdicts = (verdict.tokens_per_second for row in rows for verdict in row.verdicts)
    return any(speed.gpus > 1 for speed in verdicts if speed and not speed.refused)


def speed_tables(plan: Plan, rows: Sequence[PlanRow]) -> Iterator[tuple[str, Table]]:
    """Yield how fast each cell trains on each card, what takes the time, and the dearest operators."""
    names = [card.name for card in plan.cards] or [THIS_CPU]
    found = [Line(row, speed) for row in rows for name in names if (speed := row.speed(name))]
    kinds = dict.fromkeys(kind for line in found for kind in line.one.shares)
    spent: dict[str, Callable[[Line], str]] = {
        title: partial(lambda show, line: show(*line), show) for title, show in _spent(plan, rows).items()
    }
    several = {
        PER_GPU: lambda line: _rate_per_gpu(line.one),
        "Collectives / step": lambda line: share(line.one.links_s / line.one.step_s, 0),
    }
    spent = (several if over_several(rows) else {}) | spent
    yield (
        "Speed, and shares of the time on the GPU",
        described_table(
            "speeds of a plan",
            found,
            {"rate": _rate, **spent, **{kind: partial(_of_kind, kind) for kind in kinds}},
            more=[
                *((title, f"{{:{title}}}") for title in spent),
                *((kind.capitalize(), f"{{one.shares:{kind}}}") for kind in kinds),
            ],
        ),
    )
    dearest = [Line(line, dear) for line in found for dear in line.one.dearest]
    yield "Operators that take most of it", described_table("dearest operators of a plan", dearest)


def settings_table(fit: Fit) -> Table:
    """Return the fastest settings that fit, by length; no lines where none were asked for, or told."""
    writers: dict[str, Writer] = {"rate": _rate, "rate_per_gpu": _rate_per_gpu}
    alone = () if fit.over_several else ("GPUs", PER_GPU)
    return described_table("settings of a fit", rank_settings(fit.settings), writers, without=alone)


def cards_table(plan: Plan, rows: Sequence[PlanRow]) -> Table:
    """Return which card is for the job, by cell; no lines without a table of prices and tokens."""
    return described_table(
        "cards for a job",
        card_choices(plan, rows),
        {"rate": _rate, "span": lambda span: f"{significant(span[0])} to {significant(span[2])}"},
    )


def validation_tables(rows: Sequence[ScoredRow]) -> tuple[Table, Table, dict[str, list[str]]]:
    """Return errors of predicted speeds in groups, every one of them, and those refused, by the reason."""

    def ordered(one: SpeedSummary) -> str:
        return f"{one.ordered} of {one.pairs}" if one.pairs else NOT_APPLICABLE

    summary = described_table("errors of speeds", summarise_speeds(rows), {"ordered": ordered})
    pairs = [(row, one) for row in rows for one in row.speeds]
    told = [Line(*pair) for pair in pairs if pair[1].told]
    every = described_table("speeds published", told, {"rate": _rate})
    refused = grouped(
        (one.predicted.refused if one.predicted else row.refused or "not predicted", row.run)
        for row, one in pairs
        if one.told is None
    )
    return summary, every, refused


_Spent = Callable[[PlanRow, Speed | None], str]


def _spent(plan: Plan, rows: Sequence[PlanRow]) -> dict[str, _Spent]:
    """Return what the tokens to train on take, by title: hours, their price, and energy at most."""
    if not any(row.tokens for row in rows):
        return {}
    found: dict[str, _Spent] = {"Hours": partial(_range, 1.0)}
    if plan.price_an_hour is not None or plan.prices_an_hour:
        found["Cost"] = partial(_cost, plan)
    power = {card.name: card.power_w for card in plan.cards if card.power_w}
    return found | ({"kWh at most": partial(_energy, power)} if plan.cards else {})


def _range(factor: float, row: PlanRow, speed: Speed | None) -> str:
    if speed is None or not row.tokens:
        return NOT_APPLICABLE
    amount = row.tokens / _SECONDS_AN_HOUR * factor
    return f"{significant(amount / speed.high)} to {significant(amount / speed.low)}"


def _cost(plan: Plan, row: PlanRow, speed: Speed | None) -> str:
    price = plan.prices_an_hour.get(speed.card, plan.price_an_hour) if speed else None
    return NOT_APPLICABLE if price is None or speed is None else _range(price * speed.gpus, row, speed)


def _energy(power_w: Mapping[str, float], row: PlanRow, speed: Speed | None) -> str:
    """Write the energy if the card draws its power limit all the time, at the low end of the speed."""
    if speed is None or not row.tokens:
        return NOT_APPLICABLE
    if speed.card not in power_w:
        return NOT_MEASURED
    power_kw = speed.gpus * power_w[speed.card] / 1000
    return significant(row.tokens / speed.low / _SECONDS_AN_HOUR * power_kw)


def _rate(speed: Speed | None, gpus: int = 1) -> str:
    return NOT_APPLICABLE if speed is None else f"{speed.low / gpus:,.0f} to {speed.high / gpus:,.0f}"


def _rate_per_gpu(speed: Speed | None) -> str:
    return _rate(speed, speed.gpus if speed else 1)


def _of_kind(kind: KernelClass, shares: Mapping[KernelClass, float]) -> str:
    return share(shares.get(kind, 0.0), 0)
