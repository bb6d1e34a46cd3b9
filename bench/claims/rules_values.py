"""Tests on a number of one cell: what it trains, what it needs on a card, in which precision it works."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from bench.claims.cases import DTYPE_BYTES, Case
from bench.claims.catalogue import Bounds, ValueOf, ValueRule
from bench.claims.findings import Evidence, Figure, Setting, Unit
from bench.claims.settings import matches, settings_of


def value_evidence(rule: ValueRule, cases: Sequence[Case]) -> list[Evidence]:
    """Return a row for each chosen cell of which the quantity is known."""
    unit, measure = _QUANTITIES[rule.quantity]
    rows = []
    for case in cases:
        if not matches(case, rule.where) or (found := measure(case)) is None:
            continue
        value, basis = found
        rows.append(
            evidence_of(
                case,
                Figure(name=rule.quantity, unit=unit, value=value),
                basis,
                agrees=within(rule, value),
            )
        )
    return rows


def within(bounds: Bounds, value: float) -> bool:
    """Tell whether a value lies within bounds, both included."""
    above = bounds.at_least is None or value >= bounds.at_least
    return above and (bounds.at_most is None or value <= bounds.at_most)


def evidence_of(  # noqa: PLR0913 - the parts of one row
    case: Case,
    figure: Figure,
    basis: Sequence[Figure] = (),
    *,
    agrees: bool | None,
    note: str = "",
    more: Mapping[str, Setting] = MappingProxyType({}),
) -> Evidence:
    """Return what one cell says; ``more`` settings are looked at first for a boundary."""
    return Evidence(
        cells=(case.cell.id,),
        instrument=case.instrument,
        source=case.source,
        model=case.model,
        parameters=case.parameters,
        figure=figure,
        basis=tuple(basis),
        agrees=agrees,
        settings={**more, **settings_of(case)},
        note=note,
    )


_Found = tuple[float, tuple[Figure, ...]] | None


def _trained(case: Case) -> _Found:
    return None if not case.trainable else (case.trainable, _counts(case))


def _share(case: Case) -> _Found:
    if not case.trainable or not case.parameters:
        return None
    return case.trainable / case.parameters, _counts(case)


def _fold(case: Case) -> _Found:
    if not case.trainable or not case.parameters:
        return None
    return case.parameters / case.trainable, _counts(case)


def _counts(case: Case) -> tuple[Figure, ...]:
    named = (("parameters trained", case.trainable), ("parameters", case.parameters))
    return tuple(Figure(name=name, unit="count", value=value) for name, value in named if value)


def _needed(case: Case) -> _Found:
    """Return the top of the reserved band with the largest context of the cards that it was judged for."""
    if not case.cards:
        return None
    allocated = Figure(name="allocated at the peak", unit="bytes", value=case.peak_bytes or 0)
    return max(card.needed_bytes for card in case.cards), (allocated,)


def _adapter_bits(case: Case) -> _Found:
    """Return bits as read from the saved adapter where there is one, else as the cell says."""
    method = case.cell.method
    if method.kind == "full":
        return None
    dtype = case.cell.training.dtype if method.adapter_dtype == "weights" else "fp32"
    if case.adapter_file_bytes and case.trainable:
        # The file has a header of some kilobytes, so that whole bytes a parameter are meant.
        per_parameter = round(case.adapter_file_bytes / case.trainable)
        size = Figure(name="saved adapter", unit="bytes", value=case.adapter_file_bytes)
        return 8 * per_parameter, (size, *_counts(case)[:1])
    return 8 * DTYPE_BYTES[dtype], ()


def _compute_bits(case: Case) -> _Found:
    method = case.cell.method
    return (8 * DTYPE_BYTES[method.compute_dtype], ()) if method.kind == "qlora" else None


def _merge_change(case: Case) -> _Found:
    """Return the worst change of a logit over runs, in units of what rounding may do."""
    worst = max(case.merges, key=lambda one: one.changed_share / one.tolerated_share, default=None)
    if worst is None:
        return None
    basis = (
        Figure(name="largest change", unit="share", value=worst.changed_share),
        Figure(name="tolerated", unit="share", value=worst.tolerated_share),
    )
    return worst.changed_share / worst.tolerated_share, basis


_QUANTITIES: Mapping[ValueOf, tuple[Unit, Callable[[Case], _Found]]] = MappingProxyType(
    {
        "parameters trained": ("count", _trained),
        "share of parameters trained": ("share", _share),
        "times fewer parameters trained": ("fold", _fold),
        "memory needed on a card": ("bytes", _needed),
        "bits of an adapter's parameter": ("bits", _adapter_bits),
        "bits that products are computed in": ("bits", _compute_bits),
        "change of the largest logit": ("times the tolerance", _merge_change),
    }
)
