"""Predictions held against measurements: errors of rows, summaries of groups. Arithmetic on plain data.

A validation is a JSON file: written once predicted, read to make a page.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from pydantic import Field

from bench.io import read_json, write_text
from bench.records.predictions import Prediction, Refusal
from bench.records.published import Measured, Row, Source
from bench.records.readings import Count, Stored

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
        return (
            self.band_low_bytes <= self.measured.high_bytes
            and self.measured.low_bytes <= self.band_high_bytes
        )


class ScoredRow(Stored):
    """A row, what it was taken for, and how its predictions came out."""

    source: str
    name: str
    tier: int
    method: str
    measurements: tuple[ScoredMeasurement, ...]
    refused: str | None = Field(None, description="Why there is no prediction.")
    inexpressible: bool = Field(default=False, description="Refused by the file, before any tracing.")
    peak: str = Field("", description="Phase, operator and module that set the predicted peak.")


class Validation(Stored):
    """Everything that a page on predictions shows, without the means to predict."""

    format: int = Field(1, ge=1, le=1)
    versions: dict[str, str] = Field(description="Of the libraries that were traced.")
    sources: tuple[Source, ...]
    rows: tuple[ScoredRow, ...]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Errors of one group of measurements, as shares of the measured value."""

    source: str
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


def summarise(rows: Iterable[ScoredRow]) -> tuple[Summary, ...]:
    """Sum up the predicted measurements by source, tier, metric and moment, in order of appearance."""
    groups: dict[tuple[str, int, str, str], list[ScoredMeasurement]] = {}
    for row in rows:
        for one in row.measurements:
            if one.error is not None:
                key = (row.source, row.tier, one.measured.metric, one.measured.moment)
                groups.setdefault(key, []).append(one)
    return tuple(_summary(*key, group) for key, group in groups.items())


def _scored(row: Row, outcome: Outcome) -> ScoredRow:
    common = {
        "source": row.source,
        "name": row.name,
        "tier": row.tier,
        "method": row.cell.method.kind if row.cell else "",
    }
    if isinstance(outcome, Refusal):
        return ScoredRow(
            **common,
            measurements=tuple(ScoredMeasurement(measured=one) for one in row.measured),
            refused=outcome.message,
            inexpressible=row.refused is not None,
        )
    return ScoredRow(
        **common,
        measurements=tuple(_held_against(one, outcome) for one in row.measured),
        peak=f"{outcome.peak_phase.replace('_', ' ')}: {outcome.peak_op}, "
        f"{outcome.peak_module or 'outside any module'}",
    )


def _held_against(measured: Measured, prediction: Prediction) -> ScoredMeasurement:
    if measured.metric == "reserved" and measured.moment == "peak":
        return ScoredMeasurement(
            measured=measured,
            predicted_bytes=prediction.reserved_peak_bytes,
            band_low_bytes=prediction.reserved_low_bytes,
            band_high_bytes=prediction.reserved_high_bytes,
        )
    return ScoredMeasurement(measured=measured, predicted_bytes=_figure(measured, prediction))


def _figure(measured: Measured, prediction: Prediction) -> int | None:
    """Return the figure of a prediction that answers a measurement, if it has one."""
    if measured.metric != "allocated":
        return None
    if measured.moment == "peak":
        return prediction.allocated_peak_bytes
    if measured.moment == "adapt_peak":
        return max(prediction.phase_peaks_bytes.get(phase, 0) for phase in ("load", "adapt")) or None
    return prediction.phase_ends_bytes.get(measured.moment)


def _summary(source: str, tier: int, metric: str, moment: str, group: Sequence[ScoredMeasurement]) -> Summary:
    errors = [one.error for one in group if one.error is not None]
    sizes = [abs(error) for error in errors]
    bands = [one.in_band for one in group if one.in_band is not None]
    return Summary(
        source=source,
        tier=tier,
        metric=metric,
        moment=moment,
        count=len(errors),
        median_error=median(sizes),
        mean_error=fmean(sizes),
        largest_error=max(sizes),
        signed_error=fmean(errors),
        in_band=sum(bands),
        with_band=len(bands),
    )


def write_validation(validation: Validation, path: Path) -> None:
    """Write the file, folders included. Raises ``InfrastructureError`` where it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, validation.model_dump_json(indent=1, exclude_defaults=True) + "\n")


def read_validation(path: Path) -> Validation:
    """Read the file. Raises ``UsageError`` where it is none."""
    return read_json(path, Validation, "a validation", f"make it with bench validate -o {path}")
