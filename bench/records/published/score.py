"""How far predictions of published measurements are off. Nothing is predicted here.

A validation is a JSON file: written once predicted, read to make a page.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path

from pydantic import Field

from bench.io import read_json, write_json
from bench.records.predictions import Prediction, Refusal, Speed
from bench.records.published import Measured, MeasuredSpeed, Row, Source
from bench.records.readings import Caveat, Count, Stored

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


class ScoredSpeed(Stored):
    """One measured speed and what was predicted; None where the row is refused."""

    measured: MeasuredSpeed
    predicted: Speed | None = None

    @property
    def told(self) -> Speed | None:
        """The prediction, if it holds a figure."""
        return self.predicted if self.predicted and not self.predicted.refused else None

    @property
    def measured_rate(self) -> float | None:
        """Tokens a second as measured, of all GPUs; None where no speed was told."""
        if self.told is None:
            return None
        if self.measured.metric == "tokens_per_second":
            return self.measured.value * self.told.gpus
        return self.told.point * self.told.step_s / self.measured.value

    @property
    def error(self) -> float | None:
        """Seconds of a step, predicted over measured, less one: positive where it was faster than said."""
        return self.measured_rate / self.told.point - 1 if self.told and self.measured_rate else None

    @property
    def held_out_error(self) -> float | None:
        """The same by factors in which its source had no part."""
        if self.told is None or not self.told.held_out or not self.measured_rate:
            return None
        return self.measured_rate / self.told.held_out - 1

    @property
    def in_band(self) -> bool | None:
        """Whether the measurement, rounding considered, lies within the band; None without a prediction."""
        if self.told is None or self.measured_rate is None:
            return None
        ends = self.measured.low / self.measured.value, self.measured.high / self.measured.value
        if self.measured.metric == "step_time_s":
            ends = 1 / ends[1], 1 / ends[0]
        return (
            self.told.low <= self.measured_rate * ends[1] and self.measured_rate * ends[0] <= self.told.high
        )


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
        return any(row.refused is None for row in self.rows)


def score(rows: Sequence[Row], predict: Callable[[Row], Outcome]) -> tuple[ScoredRow, ...]:
    """Hold each row against its prediction; ``predict`` is asked for expressible rows only."""
    return tuple(
        _scored(row, predict(row) if row.refused is None else Refusal(message=row.refused)) for row in rows
    )


def _scored(row: Row, outcome: Outcome) -> ScoredRow:
    refused, peak, caveats = None, "", tuple[Caveat, ...]()
    predicted: tuple[Speed, ...] = ()
    if isinstance(outcome, Refusal):
        refused = outcome.message
    else:
        place = outcome.peak_module or "outside any module"
        peak = f"{outcome.peak_phase.replace('_', ' ')}: {outcome.peak_op}, {place}"
        caveats, predicted = outcome.caveats, outcome.speeds
    cell = row.cell
    spread = cell.parallel if cell and cell.parallel.several else None
    return ScoredRow(
        source=row.source,
        name=row.name,
        tier=row.tier,
        method=cell.method.kind if cell else "",
        loop=cell.loop.driver if cell else "window",
        gpus=f"{spread.strategy} × {spread.gpus}" if spread else "",  # noqa: RUF001 - the sign
        measurements=tuple(_held_against(one, outcome) for one in row.sizes),
        speeds=tuple(
            ScoredSpeed(measured=measured, predicted=speed)
            for measured, speed in zip_longest(row.speeds, predicted)
        ),
        refused=refused,
        inexpressible=row.refused is not None,
        peak=peak,
        caveats=caveats,
    )


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


def write_validation(validation: Validation, path: Path) -> None:
    """Write the file, folders included. Raises ``InfrastructureError`` where it cannot be written."""
    write_json(path, validation, exclude_defaults=True)


def read_validation(path: Path) -> Validation:
    """Read the file. Raises ``UsageError`` where it is none."""
    return read_json(path, Validation, "a validation", f"make it with bench validate -o {path}")
