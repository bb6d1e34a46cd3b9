"""What is said of a claim in sentences: figures in their units, counts, boundaries. Judges nothing."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from bench.claims.boundary import Condition, Conjunction
from bench.claims.findings import Evidence, Figure, Finding, Outcome, Unit, Verdict
from bench.errors import counted
from bench.report.text import GIBIBYTES, MEBIBYTES, share, significant, small_share

_SMALL_BYTES = GIBIBYTES.size_bytes
_SMALL_SHARE = 0.01


def verdict_text(verdict: Verdict) -> str:
    """Return a verdict as it stands in a table, where no conditions follow it."""
    return "holds only when …" if verdict == "holds only when" else verdict


def figure_text(figure: Figure) -> str:
    """Return a figure in its unit, with its interval."""
    show = _SHOWN[figure.unit]
    if figure.low is None or figure.high is None:
        return show(figure.value)
    return f"{show(figure.value)} (95 %: {_span(show(figure.low), show(figure.high))})"


def capital(text: str) -> str:
    """Return text that begins a line."""
    return text[:1].upper() + text[1:]


def sentence(finding: Finding) -> str:
    """Return why a part of a claim was judged so."""
    left_out = _left_out(finding.disturbed_runs)
    if not finding.deciding:
        return (
            f"Not tested: it needs {finding.needs}.{left_out}" if finding.needs else f"Not tested.{left_out}"
        )
    told = f"{_agreement(finding)}: {_range(finding.deciding)}.{_when(finding)}"
    return " ".join([told, *outcomes(finding.deciding)]) + left_out


def _left_out(runs: int) -> str:
    if not runs:
        return ""
    whose = counted(runs, "run")
    return f" The speed of {whose} is left out: others used the CPUs, or the GPU was throttled."


def outcomes(rows: Sequence[Evidence]) -> list[str]:
    """Return a sentence for each skill on what comparisons of accuracies showed."""
    topics: dict[str, list[tuple[Evidence, Outcome]]] = {}
    for row in rows:
        if row.outcome:
            topics.setdefault(row.outcome.topic, []).append((row, row.outcome))
    return [_outcome(topic, found) for topic, found in topics.items()]


def _outcome(topic: str, found: Sequence[tuple[Evidence, Outcome]]) -> str:
    kinds: dict[str, list[Evidence]] = {}
    for row, one in found:
        kinds.setdefault(_shown(one), []).append(row)
    told = [f"{len(rows)} {kind} ({_differences(rows)})" for kind, rows in kinds.items()]
    return f"On {topic}: {'; '.join(told)}."


def _shown(one: Outcome) -> str:
    """Say what is shown, and what is only not shown: that two differ, that they differ by little."""
    margin = _SHOWN["points"](one.margin)
    little = f"no more than {margin} lower" if one.one_sided else f"within {margin}"
    if one.direction == "higher" and one.one_sided:
        return "shown to be higher"
    if one.direction:
        return f"shown to be {one.direction}" + (f", but {little}" if one.within else "")
    if one.within:
        return f"not shown to differ, and shown to be {little}"
    return f"not shown to differ, nor to be {little}"


def _differences(rows: Sequence[Evidence]) -> str:
    lowest, highest = (choose(row.figure.value for row in rows) for choose in (min, max))
    return _span(*map(_SHOWN["points"], (lowest, highest)))


def _agreement(finding: Finding) -> str:
    rows = finding.deciding
    what = "comparisons" if len(rows[0].cells) > 1 else "cells"
    told = finding.agreeing + finding.disagreeing
    undecided = len(rows) - told
    if not told:
        return f"None of {len(rows)} {what} can decide"
    agreed = f"{finding.agreeing} of {told} {what} {'agrees' if finding.agreeing == 1 else 'agree'}"
    return f"{agreed}, {undecided} cannot decide" if undecided else agreed


def _range(rows: Sequence[Evidence]) -> str:
    """Return the least and the most of the rows' figure, and which instruments read them."""
    lowest = min(rows, key=lambda row: row.figure.value).figure
    highest = max(rows, key=lambda row: row.figure.value).figure
    instruments = " and ".join(sorted({row.instrument for row in rows}))
    return f"{named_span(lowest, highest)}, {instruments}"


def named_span(lowest: Figure, highest: Figure) -> str:
    """Return a figure's name with its least and its most, the unit said once."""
    show = _SHOWN[lowest.unit]
    span = _span(show(lowest.value), show(highest.value))
    if lowest.name.startswith("times "):
        return f"{span.removesuffix(' times')} {lowest.name}"
    return f"{lowest.name} {span}"


def _span(low: str, high: str) -> str:
    number, _, unit = low.partition(" ")
    return high if low == high else f"{number if high.endswith(f' {unit}') else low} to {high}"


def _when(finding: Finding) -> str:
    boundary = finding.boundary
    if boundary is None or not boundary.alternatives:
        return ""
    when = "; or when ".join(map(conjunction_text, boundary.alternatives))
    if boundary.exact:
        return f" Holds only when {when}."
    return f" Holds always when {when}: {boundary.covered} of the {boundary.agreeing}."


def conditions(finding: Finding) -> list[str]:
    """Return what a boundary leaves open, where it is not exact."""
    boundary = finding.boundary
    if boundary is None or boundary.exact:
        return []
    left = boundary.agreeing - boundary.covered
    return [f"No three settings tell why {left} more agree; they are among the cells."]


def beside(finding: Finding) -> list[str]:
    """Return what other models show, one line for each model and instrument."""
    groups: dict[tuple[str, str], list[Evidence]] = {}
    for row in finding.beside:
        groups.setdefault((row.model, row.instrument), []).append(row)
    return [
        f"Beside it, deciding nothing, {model}: {_range(rows)}; "
        f"{sum(row.agrees is True for row in rows)} of {len(rows)} agree."
        for (model, _), rows in groups.items()
    ]


def conjunction_text(conjunction: Conjunction) -> str:
    """Return conditions that are met together; two bounds on one setting are told as one."""
    told = []
    for setting in dict.fromkeys(condition.setting for condition in conjunction):
        of_it = {one.relation: one for one in conjunction if one.setting == setting}
        if of_it.keys() == {"at least", "at most"}:
            low, high = _value(of_it["at least"]), _value(of_it["at most"])
            told.append(f"{setting} is {low} to {high}")
        else:
            told += [_condition(one) for one in of_it.values()]
    return " and ".join(told)


def _condition(condition: Condition) -> str:
    sign = {"at least": "≥", "at most": "≤", "is": "is", "is not": "is not"}[condition.relation]
    return f"{condition.setting} {sign} {_value(condition)}"


def _value(condition: Condition) -> str:
    value = condition.value
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}" if isinstance(value, int | float) else value


def _bytes(value: float) -> str:
    unit = MEBIBYTES if value < _SMALL_BYTES else GIBIBYTES
    return unit.show(round(value))


def _share(value: float) -> str:
    return small_share(value) if 0 < value < _SMALL_SHARE else share(value)


_SHOWN: Mapping[Unit, Callable[[float], str]] = MappingProxyType(
    {
        "share": _share,
        "fold": lambda value: f"{significant(value)} times",
        "bytes": _bytes,
        "count": lambda value: f"{round(value):,}",
        "tokens/s": lambda value: f"{significant(value)} tokens/s",
        "bits": lambda value: f"{significant(value)} bits",
        "points": lambda value: f"{share(value).removesuffix(' %')} points",
        "times the tolerance": lambda value: f"{significant(value)} times the tolerance",
    }
)
