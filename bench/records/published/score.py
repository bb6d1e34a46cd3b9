"""How far predictions of published measurements are off. Nothing is predicted here.

A validation is a JSON file: written once predicted, read to make a page.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from statistics import fmean, median

from pydantic import Field

from bench.io import read_json, write_json
from bench.records.predictions import Prediction, Refusal, Speed
from bench.records.published import Measured, Row, Source
from bench.records.published.speeds import ScoredSpeed, SpeedSummary, speed_summary
from bench.records.readings import Caveat, Count, Stored
from bench.scenario.parallel import ParallelSpec

Outcome = Prediction | Refusal


class ScoredMeasurement(Stored):
    """One measured number and what was predicted for it; None where a prediction has no such figure."""

    measured: Measured
    predicted_bytes: Count | None = None
    band_low_bytes: Count | None = Field(None, description="Lowest replay; reserved peaks only.")
    band_high_bytes: Count | None = Field(None, description="Highest replay; reserved peaks only.")

    @property
    def error(self) -> float | None:
        """Predicted over measured, less one: positive where too much was predicted."""
        if self.predicted_bytes is None:
            return None
        return self.predicted_bytes / self.measured.size_bytes - 1

    @property
    def in_band(self) -> bool | None:
        """Whether the measurement, rounding considered, lies within the predicted band; None without one."""
        if self.band_low_bytes is None or self.band_high_bytes is None:
            return None
        measured = self.measured
        return self.band_low_bytes <= measured.high_bytes and measured.low_bytes <= self.band_high_bytes


class ScoredRow(Stored):
    """A row, what it was taken for, and how its predictions came out."""

    source: str
    name: str
    tier: int
    method: str
    loop: str = Field("window", description="The loop that was predicted; the window imitates others.")
    gpus: str = Field("", description="Strategy and number of GPUs, where there are several.")
    measurements: tuple[ScoredMeasurement, ...]
    speeds: tuple[ScoredSpeed, ...] = ()
    refused: str | None = Field(None, description="Why there is no prediction.")
    inexpressible: bool = Field(default=False, description="Refused by the file, before any tracing.")
    peak: str = Field("", description="Phase, operator and module that set the predicted peak.")
    caveats: tuple[Caveat, ...] = Field((), description="What the prediction says of itself.")

    @property
    def run(self) -> str:
        """What was predicted, in words."""
        spread = f" ({self.gpus})" if self.gpus else ""
        return f"{self.name}{spread}" if self.loop == "window" else f"{self.name}{spread} in {self.loop}"


class Validation(Stored):
    """Everything that a page on predictions shows, without the means to predict."""

    format: int = Field(1, ge=1, le=1)
    versions: dict[str, str] = Field(description="Of the libraries that were traced.")
    sources: tuple[Source, ...]
    rows: tuple[ScoredRow, ...]

    @property
    def any_predicted(self) -> bool:
        """Whether any row could be predicted."""
        return any(row.refused is None for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Errors of one group of measurements, as shares of the measured value."""

    source: str
    loop: str
    tier: int
    metric: str
    moment: str
    count: int
    median_error: float
    mean_error: float
    largest_error: float
    signed_error: float
    in_band: int
    with_band: int


def score(rows: Sequence[Row], predict: Callable[[Row], Outcome]) -> tuple[ScoredRow, ...]:
    """Hold each row against its prediction; ``predict`` is asked for expressible rows only."""
    return tuple(
        _scored(row, predict(row) if row.refused is None else Refusal(message=row.refused)) for row in rows
    )


def _scored(row: Row, outcome: Outcome) -> ScoredRow:
    refused, peak = None, ""
    if isinstance(outcome, Refusal):
        refused = outcome.message
    else:
        place = outcome.peak_module or "outside any module"
        peak = f"{outcome.peak_phase.replace('_', ' ')}: {outcome.peak_op}, {place}"
    return ScoredRow(
        source=row.source,
        name=row.name,
        tier=row.tier,
        method=row.cell.method.kind if row.cell else "",
        loop=row.cell.loop.driver if row.cell else "window",
        gpus=_spread(row.cell.parallel) if row.cell else "",
        measurements=tuple(_held_against(one, outcome) for one in row.sizes),
        speeds=tuple(_speeds(row, outcome)),
        refused=refused,
        inexpressible=row.refused is not None,
        peak=peak,
        caveats=() if isinstance(outcome, Refusal) else outcome.caveats,
    )


def _spread(parallel: ParallelSpec) -> str:
    return f"{parallel.strategy} × {parallel.gpus}" if parallel.several else ""  # noqa: RUF001 - the sign


def _held_against(measured: Measured, outcome: Outcome) -> ScoredMeasurement:
    """Return the measurement beside the figure of a prediction that answers it, if it has one."""
    if isinstance(outcome, Refusal):
        return ScoredMeasurement(measured=measured)
    if measured.moment == "peak" and measured.metric != "unknown":
        point, low, high = (
            getattr(outcome, f"{measured.metric}_{end}_bytes") for end in ("peak", "low", "high")
        )
        return ScoredMeasurement(
            measured=measured, predicted_bytes=point, band_low_bytes=low, band_high_bytes=high
        )
    figures: dict[str, int | None] = {str(phase): size for phase, size in outcome.phase_ends_bytes.items()}
    figures["adapt_peak"] = (
        max(outcome.phase_peaks_bytes.get(phase, 0) for phase in ("load", "adapt")) or None
    )
    figure = figures.get(measured.moment) if measured.metric == "allocated" else None
    return ScoredMeasurement(measured=measured, predicted_bytes=figure)


def _speeds(row: Row, outcome: Outcome) -> Iterator[ScoredSpeed]:
    """Yield measured speeds, each beside what was predicted for it, in the same order."""
    predicted: Sequence[Speed | None] = () if isinstance(outcome, Refusal) else outcome.speeds
    for measured, one in zip_longest(row.speeds, predicted):
        yield ScoredSpeed(measured=measured, predicted=one)


_ALL, SEVERAL = "all of one GPU", "several GPUs"


def summarise_speeds(rows: Iterable[ScoredRow]) -> tuple[SpeedSummary, ...]:
    """Sum up predicted speeds: of one GPU, those that it bounds, of several; then by source and by method."""
    told = [(row, one) for row in rows for one in row.speeds if one.told]
    groups: dict[str, list[ScoredSpeed]] = {
        _ALL: [],
        "bound by the GPU, warm": [],
        "without a part in the factors": [],
        SEVERAL: [],
    }
    for row, one in told:
        if one.told is not None:
            part = ["bound by the GPU, warm"] if one.told.bound_by != "host" and not one.measured.cold else []
            part += [] if one.told.calibrated_on else ["without a part in the factors"]
            several = one.told.gpus > 1
            overall = [SEVERAL] if several else [_ALL, *part]
            method = f"method {row.method}{f', {SEVERAL}' * several}"
            for name in (*overall, f"{row.source}, {one.told.card}", method):
                groups.setdefault(name, []).append(one)
    return tuple(speed_summary(name, group) for name, group in groups.items() if group)


def summarise(rows: Iterable[ScoredRow]) -> tuple[Summary, ...]:
    """Sum up the predicted measurements by source, loop, tier, metric and moment, in order of appearance."""
    groups: dict[tuple[str, str, int, str, str], list[tuple[float, bool | None]]] = {}
    for row in rows:
        for one in row.measurements:
            if one.error is not None:
                key = (row.source, row.loop, row.tier, one.measured.metric, one.measured.moment)
                groups.setdefault(key, []).append((one.error, one.in_band))
    found = []
    for (source, loop, tier, metric, moment), group in groups.items():
        errors, in_band = zip(*group, strict=True)
        sizes = [abs(error) for error in errors]
        summary = Summary(
            source=source,
            loop=loop,
            tier=tier,
            metric=metric,
            moment=moment,
            count=len(group),
            median_error=median(sizes),
            mean_error=fmean(sizes),
            largest_error=max(sizes),
            signed_error=fmean(errors),
            in_band=in_band.count(True),
            with_band=len(group) - in_band.count(None),
        )
        found.append(summary)
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class LoopsBeside:
    """What the window's imitation and a library's own loop make of the same measurements of a source."""

    source: str
    loop: str
    metric: str
    count: int
    imitated_errors: tuple[float, ...]
    real_errors: tuple[float, ...]
    apart: tuple[float, ...]
    """Real over imitated, less one."""

    @property
    def nearer(self) -> int:
        """How many measurements the library's own loop comes nearer to, or as near."""
        pairs = zip(self.real_errors, self.imitated_errors, strict=True)
        return sum(abs(real) <= abs(imitated) for real, imitated in pairs)


def loops_beside(rows: Iterable[ScoredRow]) -> tuple[LoopsBeside, ...]:
    """Set the peaks that both loops predict beside each other, by source, loop and counter."""
    imitated: dict[tuple[str, str], ScoredRow] = {}
    groups: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
    for row in rows:
        if row.loop == "window":
            imitated[row.source, row.name] = row
            continue
        for other, one in zip(imitated[row.source, row.name].measurements, row.measurements, strict=True):
            if other.error is not None and one.error is not None:
                ratio = (1 + one.error) / (1 + other.error)
                key = (row.source, row.loop, one.measured.metric)
                groups.setdefault(key, []).append((other.error, one.error, ratio - 1))
    found = []
    for (source, loop, metric), group in groups.items():
        first, second, apart = zip(*group, strict=True)
        found.append(
            LoopsBeside(
                source=source,
                loop=loop,
                metric=metric,
                count=len(group),
                imitated_errors=first,
                real_errors=second,
                apart=apart,
            )
        )
    return tuple(found)


def write_validation(validation: Validation, path: Path) -> None:
    """Write the file, folders included. Raises ``InfrastructureError`` where it cannot be written."""
    write_json(path, validation, exclude_defaults=True)


def read_validation(path: Path) -> Validation:
    """Read the file. Raises ``UsageError`` where it is none."""
    return read_json(path, Validation, "a validation", f"make it with bench validate -o {path}")
