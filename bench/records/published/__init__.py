"""Published measurements, each with the cell that was measured, and how far predictions of them are off.

Nothing is predicted here. ``data/README.md`` documents the format of rows (TOML), which any file may use. A
validation is a JSON file: written once predicted, read to make a page.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from bench.errors import ScenarioError
from bench.io import read_json, write_text
from bench.records.predictions import Prediction, Refusal
from bench.records.readings import Count, Positive, Stored
from bench.scenario.cell import Cell
from bench.scenario.diagnostics import Path as KeyPath
from bench.scenario.diagnostics import Problems, shown
from bench.scenario.load import read_document
from bench.scenario.matrix import merged
from bench.scenario.types import Frozen, Name, Platform

_Model = TypeVar("_Model", bound=BaseModel)
Outcome = Prediction | Refusal
Metric = Literal["allocated", "reserved", "unknown"]
Moment = Literal["peak", "adapt_peak", "load", "adapt", "forward", "backward", "optimizer_step"]


class Source(Frozen):
    """Who measured, where it is published, and under what licence."""

    name: Name
    title: str = Field(description="The source in a few words, for a heading.")
    repository: str = Field(description="Repository or page that publishes the numbers.")
    commit: str = Field("", description="Git commit at which they were read, where there is one.")
    licence: str = Field(description="Licence of the repository; unknown where it states none.")
    note: str = Field("", description="What a reader of the table must know; shown above it.")
    fitted: str = Field("", description="The one constant chosen for the whole source, if any, and how.")


class Measured(Frozen):
    """One published number in bytes. The bounds say what the published rounding leaves open.

    A moment is the run's ``peak``, the peak until the model is adapted (``adapt_peak``), or the end of a
    phase: of loading, of adapting, or of a part of the first step.
    """

    metric: Metric
    moment: Moment = "peak"
    size_bytes: Positive
    low_bytes: Positive
    high_bytes: Positive

    @model_validator(mode="before")
    @classmethod
    def _exact_unless_bounded(cls, data: Any) -> Any:
        if isinstance(data, dict) and "size_bytes" in data:
            exact = {"low_bytes": data["size_bytes"], "high_bytes": data["size_bytes"]}
            return exact | data
        return data

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low_bytes <= self.size_bytes <= self.high_bytes:
            raise ValueError("low_bytes, size_bytes and high_bytes must rise")
        return self


class Row(Frozen):
    """One run that was measured. ``refused`` says why it cannot be expressed; then there is no cell."""

    name: Name
    source: Name
    tier: Literal[1, 2, 3] = Field(description="1: known to the byte; 2: one thing inferred; 3: loose.")
    reference: str = Field(description="File or page with the number.")
    date: str
    gpu: str
    software: str = Field(description="Versions as published.")
    note: str = ""
    measured: tuple[Measured, ...] = Field(min_length=1)
    cell: Cell | None = None
    platform: Platform = Platform()
    allocator: str = Field("", description="PYTORCH_CUDA_ALLOC_CONF of the run; empty for torch's default.")
    refused: str | None = None


class RowFile(Frozen):
    """A source and its rows."""

    source: Source
    rows: tuple[Row, ...]


_ROW_KEYS = ("name", "tier", "reference", "date", "gpu", "software", "note", "measured", "allocator")
_CELL_KEYS = ("model", "method", "data", "training")
_KEYS = (*_ROW_KEYS, *_CELL_KEYS, "platform", "refused")


def read_rows(path: Path) -> RowFile:
    """Read a file of measurements.

    Raises ``ScenarioError`` with every mistake, one "file:line: key: what is wrong" each.
    """
    data, problems = read_document(path)
    for key in sorted(set(data) - {"source", "defaults", "rows"}):
        problems.add((key,), "is not a table of this format", key, ("source", "defaults", "rows"))
    source = _checked(Source, data.get("source", {}), ("source",), problems)
    defaults, tables = data.get("defaults", {}), data.get("rows", [])
    if not (isinstance(defaults, dict) and isinstance(tables, list)):
        raise ScenarioError([f"{path}:1: defaults must be a table and rows an array of tables; correct it."])
    of = source.name if source else "unknown"
    rows = [_row(table, defaults, of, ("rows", index), problems) for index, table in enumerate(tables)]
    names = [table.get("name") for table in tables if isinstance(table, dict)]
    for index, name in enumerate(names):
        if name in names[:index]:
            problems.add(("rows", index, "name"), f"{shown(name)} is the name of an earlier row; rename it")
    if problems or source is None:
        raise problems.error()
    return RowFile(source=source, rows=tuple(row for row in rows if row is not None))


def shipped_rows() -> tuple[RowFile, ...]:
    """Read the measurements that come with the package, by file name."""
    folder = Path(str(files("bench.records.published") / "data"))
    return tuple(read_rows(path) for path in sorted(folder.glob("*.toml")))


def _row(table: object, defaults: dict[str, Any], source: str, at: KeyPath, problems: Problems) -> Row | None:
    """Lay a row's table over the defaults and build its cell; None after a mistake, which is noted.

    Tables are merged key by key; of the defaults' methods only the one of the row's kind counts.
    """
    if not isinstance(table, dict):
        problems.add(at, f"must be a table, not {shown(table)}")
        return None
    for key in sorted(set(table) - set(_KEYS)):
        problems.add((*at, key), "is not a key of a row", key, _KEYS)
    method = table.get("method", {})
    kind = method.get("kind") if isinstance(method, dict) else None
    usual = defaults.get("method", {})
    own = usual.get(kind, {}) if isinstance(usual, dict) and isinstance(kind, str) else {}
    content = merged(table, defaults | {"method": own})
    platform = _checked(Platform, content.get("platform", {}), (*at, "platform"), problems)
    if platform is None:
        return None
    row = {key: content[key] for key in (*_ROW_KEYS, "platform", "refused") if key in content}
    if "refused" not in row:
        row["cell"] = {
            "id": f"{source}/{content.get('name')}",
            "scenario": source,
            "device": platform.device,
            "model": merged(content.get("model", {}), {"name": "model"}),
            "method": content["method"],
            "data": content.get("data", {"source": "synthetic"}),
            "training": content.get("training", {}),
            **{group: {} for group in ("window", "evaluation", "limits")},
        }
    return _checked(Row, row | {"source": source}, at, problems)


def _checked(kind: type[_Model], content: Any, at: KeyPath, problems: Problems) -> _Model | None:
    """Return the model, or None after noting each of pydantic's complaints at the key it is about."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        for detail in error.errors():
            message = str(detail.get("ctx", {}).get("error", detail["msg"])).rstrip(".")
            # Keys that stand in no file are ours: the cell of a row, the kind of a method.
            path = at
            for key in detail["loc"]:
                path = (*path, key) if problems.stands((*path, key)) or key == detail["loc"][-1] else path
            problems.add(path, f"{message[:1].lower()}{message[1:]}; correct it")
    return None


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
        measurements=tuple(_held_against(one, outcome) for one in row.measured),
        refused=refused,
        inexpressible=row.refused is not None,
        peak=peak,
    )


def _held_against(measured: Measured, outcome: Outcome) -> ScoredMeasurement:
    """Return the measurement beside the figure of a prediction that answers it, if it has one."""
    if isinstance(outcome, Refusal):
        return ScoredMeasurement(measured=measured)
    if measured.metric == "reserved" and measured.moment == "peak":
        return ScoredMeasurement(
            measured=measured,
            predicted_bytes=outcome.reserved_peak_bytes,
            band_low_bytes=outcome.reserved_low_bytes,
            band_high_bytes=outcome.reserved_high_bytes,
        )
    figures: dict[str, int | None] = {str(phase): size for phase, size in outcome.phase_ends_bytes.items()}
    figures["peak"] = outcome.allocated_peak_bytes
    figures["adapt_peak"] = (
        max(outcome.phase_peaks_bytes.get(phase, 0) for phase in ("load", "adapt")) or None
    )
    figure = figures.get(measured.moment) if measured.metric == "allocated" else None
    return ScoredMeasurement(measured=measured, predicted_bytes=figure)


def summarise(rows: Iterable[ScoredRow]) -> tuple[Summary, ...]:
    """Sum up the predicted measurements by source, tier, metric and moment, in order of appearance."""
    groups: dict[tuple[str, int, str, str], list[tuple[float, bool | None]]] = {}
    for row in rows:
        for one in row.measurements:
            if one.error is not None:
                key = (row.source, row.tier, one.measured.metric, one.measured.moment)
                groups.setdefault(key, []).append((one.error, one.in_band))
    found = []
    for (source, tier, metric, moment), group in groups.items():
        errors, in_band = zip(*group, strict=True)
        sizes = [abs(error) for error in errors]
        summary = Summary(
            source=source,
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


def write_validation(validation: Validation, path: Path) -> None:
    """Write the file, folders included. Raises ``InfrastructureError`` where it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, validation.model_dump_json(indent=1, exclude_defaults=True) + "\n")


def read_validation(path: Path) -> Validation:
    """Read the file. Raises ``UsageError`` where it is none."""
    return read_json(path, Validation, "a validation", f"make it with bench validate -o {path}")
