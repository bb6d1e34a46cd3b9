"""What a cell or a pair of cells shows: quantities with what they were computed from, as rows of evidence."""

import math
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Final, Literal

import numpy as np
from scipy.special import stdtrit

from bench.claims.cases import DTYPE_BYTES, PUBLISHED_MARGIN, Case, Instrument, Scalar
from bench.compare.accuracy import CONFIDENCE
from bench.errors import percent

Unit = Literal["share", "fold", "bytes", "count", "tokens/s", "bits", "points", "times the tolerance"]
_METHODS: Final = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA", "peft": "another method"}
_NAMES: Final = {
    "method.rank": "rank",
    "method.target_modules": "target modules",
    "method.adapter_dtype": "adapters' dtype",
    "method.double_quantisation": "double quantisation",
    "method.compute_dtype": "compute dtype",
    "training.sequence_length": "sequence length",
    "training.micro_batch": "micro-batch",
    "training.gradient_checkpointing": "gradient checkpointing",
    "training.gradient_accumulation": "gradient accumulation",
    "training.dtype": "dtype",
    "training.autocast": "autocast",
    "training.optimizer": "optimizer",
    "training.loss": "loss",
    "training.attention": "attention",
    "data.task": "task",
}


@dataclass(frozen=True)
class Figure:
    """One number with its name and unit; an interval where there is one, and of which kind."""

    name: str
    unit: Unit
    value: float
    low: float | None = None
    high: float | None = None
    interval: str = "95 %"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a comparison of accuracies showed, on questions about ``topic``.

    ``direction`` is where the whole interval lies, None where it holds zero. ``within`` is that it lies
    within ``margin`` of zero: not below by more where ``one_sided``, else on both sides.
    """

    topic: str
    direction: Literal["higher", "lower"] | None
    within: bool
    margin: float
    one_sided: bool


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One cell, or one pair of cells, and what it says of the claim; None where it is inconclusive.

    ``figure`` is what the claim is about, ``basis`` what it was computed from. ``settings`` is what a
    boundary can be drawn by.
    """

    cells: tuple[str, ...]
    instrument: Instrument
    source: str
    model: str
    parameters: int | None
    figure: Figure
    basis: tuple[Figure, ...]
    agrees: bool | None
    settings: Mapping[str, Scalar]
    note: str = ""
    outcome: Outcome | None = None


def evidence_of(
    cells: Sequence[Case],
    figure: Figure,
    basis: Sequence[Figure] = (),
    *,
    agrees: bool | None,
    free: Collection[str] = (),
    note: str = "",
    more: Mapping[str, Scalar] | None = None,
    outcome: Outcome | None = None,
) -> Evidence:
    """Return what one cell says, or two together; ``more`` settings are looked at first for a boundary."""
    return Evidence(
        cells=tuple(case.cell.id for case in cells),
        instrument=cells[0].instrument,
        source=cells[0].source,
        model=cells[0].model,
        parameters=cells[0].parameters,
        figure=figure,
        basis=tuple(basis),
        agrees=agrees,
        settings={**(more or {}), **settings_of(*cells, free=free)},
        note=note,
        outcome=outcome,
    )


def settings_of(
    case: Case, reference: Case | None = None, *, free: Collection[str] = ()
) -> dict[str, Scalar]:
    """Return what a boundary may be drawn by, most telling first, and what was free in the reference."""
    method, training = case.cell.method, case.cell.training
    base = "int8" if case.fields.get("method.base") == "int8" else "none"
    found: dict[str, Scalar] = {
        "method": _METHODS[method.kind],
        "quantisation": method.quantisation if method.kind == "qlora" else base,
        **_named(case, _NAMES),
        "tokens in a micro-batch": training.micro_batch * training.sequence_length,
        "model": case.model,
    }
    if case.parameters is not None:
        found["billions of parameters"] = round(case.parameters / 1e9, 2)
    if reference is not None:
        kind = reference.cell.method.kind
        other = _METHODS[kind] if kind != method.kind else "the other"
        found |= {f"{other}'s {name}": value for name, value in _named(reference, free).items()}
    return found


def _named(case: Case, paths: Collection[str]) -> dict[str, Scalar]:
    values = {name: case.fields.get(path) for path, name in _NAMES.items() if path in paths}
    plain = {name: "+".join(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {name: value for name, value in plain.items() if value is not None}


# A value and what it was computed from; None where it is not known.
_Found = tuple[float, list[Figure]] | None


def quantity_of(name: str, cells: Sequence[Case]) -> tuple[Figure, list[Figure]] | None:
    """Return a quantity of a cell or of two, of speed with an interval, and what it was computed from."""
    unit, measure_it = QUANTITIES["value" if len(cells) == 1 else "pair"][name]
    if (found := measure_it(*cells)) is None:
        return None
    interval = ratio_interval(*(case.speeds for case in cells)) if name == "speed" else (None, None)
    return Figure(name, unit, found[0], *interval), found[1]


def quantities_of(name: str, cells: Sequence[Case]) -> Iterator[tuple[Figure, list[Figure], str]]:
    """Yield a quantity, what it was computed from, and a note; speed that was predicted for each card.

    The interval of a predicted ratio is that of independent errors: the ranges of both speeds, combined in
    quadrature; that of a published one is the margin for repeats.
    """
    if name != "speed" or cells[0].measured:
        if found := quantity_of(name, cells):
            yield *found, ""
        return
    ours, theirs = (case.told_speeds for case in cells)
    predicted = cells[0].instrument == "predicted"
    kind = "ranges of both" if predicted else f"{percent(PUBLISHED_MARGIN, 0)} either way"
    for card in filter(theirs.__contains__, ours):
        (low, point, high), (least, other, most) = ours[card], theirs[card]
        below, above = (
            float(np.linalg.norm(np.log(sides), 2 if predicted else 1))
            for sides in ((point / low, most / other), (high / point, other / least))
        )
        middle = point / other
        ratio = Figure(name, "fold", middle, middle * math.exp(-below), middle * math.exp(above), kind)
        yield ratio, both("speed", point, other, "tokens/s"), card if predicted else ""


def _trained(of: Callable[[int, int], float], case: Case) -> _Found:
    trained, every = case.trainable, case.parameters
    if not trained or not every:
        return None
    return of(trained, every), [
        Figure("parameters trained", "count", trained),
        Figure("parameters", "count", every),
    ]


def _needed_on_any(case: Case) -> _Found:
    """Return the top of the reserved band with the largest context of the cards that it was judged for."""
    needed = [card.needed_bytes for _, card in case.cards]
    return (max(needed), [Figure("allocated at the peak", "bytes", case.peak_bytes or 0)]) if needed else None


def _adapter_bits(case: Case) -> _Found:
    """Return bits as read from the saved adapter where there is one, else as the cell says."""
    method, facts = case.cell.method, case.measured.facts if case.measured else None
    if method.kind == "full":
        return None
    if facts and facts.adapter_file_bytes and case.trainable:
        # The file has a header of some kilobytes, so that whole bytes a parameter are meant.
        bits = 8 * round(facts.adapter_file_bytes / case.trainable)
        size = Figure("saved adapter", "bytes", facts.adapter_file_bytes)
        return bits, [size, Figure("parameters trained", "count", case.trainable)]
    return 8 * DTYPE_BYTES[case.cell.training.dtype if method.adapter_dtype == "weights" else "fp32"], []


def _compute_bits(case: Case) -> _Found:
    method = case.cell.method
    return (8 * DTYPE_BYTES[method.compute_dtype], []) if method.kind == "qlora" else None


def _merge_change(case: Case) -> _Found:
    """Return the largest change of a logit over runs, in units of what rounding may do."""
    if not case.measured or not (merge := case.measured.merge):
        return None
    change, tolerated = merge.worst_share, merge.tolerated_share
    return change / tolerated, [
        Figure("largest change", "share", change),
        Figure("tolerated", "share", tolerated),
    ]


def _sizes(
    name: str, read: Callable[[Case], int | None], of: Callable[[int, int], float], *cells: Case
) -> _Found:
    ours, theirs = map(read, cells)
    return (of(ours, theirs), both(name, ours, theirs)) if ours and theirs else None


def _state_bits(subject: Case, reference: Case) -> _Found:
    """Return how many bits less the constants of quantisation take a parameter that can be quantised."""
    parameters = subject.quantisable_parameters
    saved = _state(lambda ours, theirs: theirs - ours, subject, reference)
    if not saved or not parameters:
        return None
    return 8 * saved[0] / parameters, [
        *saved[1],
        Figure("parameters outside embeddings", "count", parameters),
    ]


def _speed(subject: Case, reference: Case) -> _Found:
    ours, theirs = subject.speeds, reference.speeds
    if not ours or not theirs:
        return None
    ratio = statistics.geometric_mean(ours) / statistics.geometric_mean(theirs)
    return ratio, both("speed", statistics.median(ours), statistics.median(theirs), "tokens/s")


def both(name: str, ours: float, theirs: float, unit: Unit = "bytes") -> list[Figure]:
    return [Figure(name, unit, ours), Figure(f"{name}, reference", unit, theirs)]


_peak = partial(_sizes, "peak", attrgetter("peak_bytes"))
_loaded = partial(_sizes, "once loaded", attrgetter("loaded_bytes"))
_state = partial(_sizes, "state", attrgetter("quantisation_state_bytes"))
_Measure = tuple[Unit, Callable[..., _Found]]
QUANTITIES: dict[str, dict[str, _Measure]] = {
    "value": {
        "parameters trained": ("count", partial(_trained, lambda trained, _: trained)),
        "share of parameters trained": ("share", partial(_trained, lambda trained, every: trained / every)),
        "times fewer parameters trained": ("fold", partial(_trained, lambda trained, every: every / trained)),
        "memory needed on a card": ("bytes", _needed_on_any),
        "bits of an adapter's parameter": ("bits", _adapter_bits),
        "bits that products are computed in": ("bits", _compute_bits),
        "change of the largest logit": ("times the tolerance", _merge_change),
    },
    "pair": {
        "less peak memory": ("share", partial(_peak, lambda ours, theirs: 1 - ours / theirs)),
        "more peak memory": ("share", partial(_peak, lambda ours, theirs: ours / theirs - 1)),
        "times less peak memory": ("fold", partial(_peak, lambda ours, theirs: theirs / ours)),
        "times less memory once loaded": ("fold", partial(_loaded, lambda ours, theirs: theirs / ours)),
        "bits of quantisation state saved": ("bits", _state_bits),
        "speed": ("fold", _speed),
    },
}
"""Units of what a cell has, or what two give together, and how it is read."""


def ratio_interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Return a 95 % interval of the ratio of two geometric means (Welch 1947, Biometrika 34:28).

    None where either side has fewer than two runs.
    """
    sizes = np.array([len(ours), len(theirs)])
    if sizes.min() < 2:  # noqa: PLR2004 - a spread takes two
        return None, None
    logs = [np.log(side) for side in (ours, theirs)]
    errors = np.array([side.var(ddof=1) for side in logs]) / sizes
    half, difference = 0.0, float(logs[0].mean() - logs[1].mean())
    if errors.any():
        freedom = errors.sum() ** 2 / (errors**2 / (sizes - 1)).sum()
        half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(errors.sum()))
    return math.exp(difference - half), math.exp(difference + half)
