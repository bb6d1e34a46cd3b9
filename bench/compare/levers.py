"""What each memory lever does on its own: cells set against the plain method of their kind. Nothing is shown.

The plain method is the one named after its kind, ``full`` or ``lora``; adapters over any base are set against
``lora``.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter

from bench.compare.measured import Comparison, Instrument, Measured
from bench.compare.studies import PROCESS
from bench.errors import UsageError
from bench.records.derived_metrics import speed_disturbed
from bench.scenario.types import Cell

_PLAIN = {"full": "full", "lora": "lora", "qlora": "lora"}
_ALWAYS_TOLD = {"quantisation", "double_quantisation"}
IDLE_SHARE = 0.01
TENSORS: dict[str, Instrument] = {"cpu": "ledger", "cuda": "cuda_allocated"}
"""What is predicted and read alike, by device."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One field that a lever changes; ``before`` is None where the plain method has no such field."""

    field: str
    before: object
    after: object


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One cell against its baseline: shares of the baseline's value, 0 being no change; None is *not told*.

    ``peak_share`` is by the instrument ``TENSORS`` names, ``predicted_share`` what was predicted of it before
    both ran, ``process_share`` by ``PROCESS``, ``flops_share`` of operations for each token. ``speed_share``
    is left out where either run's speed was disturbed.
    """

    row: Measured
    changes: tuple[Change, ...]
    disturbed: bool
    peak_share: float | None = None
    predicted_share: float | None = None
    process_share: float | None = None
    flops_share: float | None = None
    speed_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Levers:
    """A plain method and every lever pulled on it."""

    baseline: Effect
    effects: tuple[Effect, ...]

    @property
    def saving(self) -> tuple[Effect, ...]:
        """Return what lowers the peak of tensors, most first."""
        return self._moving(lambda share: share < -IDLE_SHARE)

    @property
    def costing(self) -> tuple[Effect, ...]:
        """Return what raises the peak of tensors, least first."""
        return self._moving(lambda share: share > IDLE_SHARE)

    @property
    def idle(self) -> tuple[Effect, ...]:
        """Return what leaves the peak of tensors as it is."""
        return self._moving(lambda share: abs(share) <= IDLE_SHARE)

    @property
    def misses(self) -> tuple[float, ...]:
        """Return how far each predicted change is from the one read, in shares of the baseline's peak."""
        return tuple(
            abs(one.predicted_share - one.peak_share)
            for one in self.effects
            if one.predicted_share is not None and one.peak_share is not None
        )

    def _moving(self, asked: Callable[[float], bool]) -> tuple[Effect, ...]:
        found = [(one.peak_share, one) for one in self.effects if one.peak_share is not None]
        return tuple(one for share, one in sorted(found, key=itemgetter(0)) if asked(share))


def levers(comparison: Comparison) -> tuple[Levers, ...]:
    """Return the levers of each plain method that ended well, by model and environment.

    Raises UsageError when there is no plain method at all.
    """
    groups: dict[tuple[str, str, str], list[Measured]] = {}
    for row in comparison.rows:
        if row.kind in _PLAIN:
            groups.setdefault((row.cell.model.name, row.environment, _PLAIN[row.kind]), []).append(row)
    found = []
    for (_, _, plain), rows in groups.items():
        base = next((row for row in rows if row.cell.method.name == plain and row.outcome == "ok"), None)
        if base is not None:
            effects = [_effect(row, base) for row in rows if row is not base]
            found.append(Levers(baseline=_effect(base, base), effects=tuple(effects)))
    if not found:
        names = " or ".join(dict.fromkeys(_PLAIN.values()))
        raise UsageError(f"no good run of a method named {names}; run the plain method beside the levers")
    return tuple(found)


def _effect(row: Measured, base: Measured) -> Effect:
    changes = tuple(_changes(row.cell, base.cell))
    disturbed = any(speed_disturbed(one.caveats) for one in (row, base))
    if row.outcome != "ok":
        return Effect(row=row, changes=changes, disturbed=disturbed)
    speeds = [one.throughput.tokens_per_second if one.throughput else None for one in (row, base)]
    return Effect(
        row=row,
        changes=changes,
        disturbed=disturbed,
        peak_share=_share(*(_peak(one, TENSORS) for one in (row, base))),
        predicted_share=_share(*(_predicted(one) for one in (row, base))),
        process_share=_share(*(_peak(one, PROCESS) for one in (row, base))),
        flops_share=_share(row.flops_per_token, base.flops_per_token),
        speed_share=None if disturbed else _share(*speeds),
    )


def _share(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base - 1


def _peak(row: Measured, instruments: Mapping[str, Instrument]) -> int | None:
    peak = row.peak(instruments[row.device])
    return peak.peak_bytes if peak else None


def _predicted(row: Measured) -> int | None:
    found = (one.high_bytes for one in row.predictions if one.instrument == TENSORS[row.device])
    return next(found, None)


def _changes(cell: Cell, base: Cell) -> Iterator[Change]:
    """Yield every field of method, data and training that is not as in the baseline."""
    for part in ("method", "data", "training"):
        holder, plain = getattr(cell, part), getattr(base, part)
        for name, field in type(holder).model_fields.items():
            value = getattr(holder, name)
            if name == "name" or (name in type(plain).model_fields and getattr(plain, name) == value):
                continue
            if name in type(plain).model_fields:
                yield Change(field=name, before=getattr(plain, name), after=value)
            elif value != field.default or name in _ALWAYS_TOLD:
                yield Change(field=name, before=None, after=value)
