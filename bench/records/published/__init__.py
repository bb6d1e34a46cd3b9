"""Published measurements as rows that each name the cell that was measured; TOML in, frozen types out.

Nothing is predicted here. ``data/README.md`` documents the format, which any file may use; ``score.py`` holds
the rows against predictions.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from bench.errors import ScenarioError
from bench.records.readings import Positive
from bench.scenario.cell import Cell
from bench.scenario.diagnostics import Problems, shown
from bench.scenario.load import read_document
from bench.scenario.matrix import merged
from bench.scenario.types import (
    DataSpec,
    EvaluationSpec,
    Frozen,
    LimitsSpec,
    MethodSpec,
    ModelSpec,
    Name,
    Platform,
    SyntheticData,
    TrainingSpec,
    WindowSpec,
)

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
_METHOD: TypeAdapter[MethodSpec] = TypeAdapter(MethodSpec)
_DATA: TypeAdapter[DataSpec] = TypeAdapter(DataSpec)


def read_rows(path: Path) -> RowFile:
    """Read a file of measurements.

    Raises ``ScenarioError`` with every mistake, one "file:line: key: what is wrong" each.
    """
    data, problems = read_document(path)
    for key in sorted(set(data) - {"source", "defaults", "rows"}):
        problems.add((key,), "is not a table of this format", key, ("source", "defaults", "rows"))
    source = _source(data, problems)
    defaults, tables = data.get("defaults", {}), data.get("rows", [])
    if not (isinstance(defaults, dict) and isinstance(tables, list)):
        raise ScenarioError([f"{path}:1: defaults must be a table and rows an array of tables; correct it."])
    rows = [_row(table, defaults, source, ("rows", index), problems) for index, table in enumerate(tables)]
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


def _source(data: dict[str, Any], problems: Problems) -> Source | None:
    try:
        return Source.model_validate(data.get("source", {}))
    except ValidationError as error:
        _explain(error, ("source",), problems)
        return None


def _row(
    table: object,
    defaults: dict[str, Any],
    source: Source | None,
    at: tuple[str | int, ...],
    problems: Problems,
) -> Row | None:
    """Lay a row's table over the defaults and build its cell; None after a mistake, which is noted."""
    if not isinstance(table, dict):
        problems.add(at, f"must be a table, not {shown(table)}")
        return None
    for key in sorted(set(table) - set(_KEYS)):
        problems.add((*at, key), "is not a key of a row", key, _KEYS)
    content = _over_defaults(table, defaults)
    try:
        platform = Platform.model_validate(content.get("platform", {}))
        facts = {key: content[key] for key in _ROW_KEYS if key in content}
        name = source.name if source else "unknown"
        refused = content.get("refused")
        cell = None if refused is not None else _cell(content, name, platform)
        return Row.model_validate(
            facts | {"source": name, "cell": cell, "platform": platform, "refused": refused}
        )
    except ValidationError as error:
        _explain(error, at, problems)
        return None


def _over_defaults(table: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Merge key by key; of the defaults' methods only the one of the row's kind counts."""
    content: dict[str, Any] = merged(
        table, {key: value for key, value in defaults.items() if key != "method"}
    )
    method = content.get("method")
    if isinstance(method, dict):
        of_kind = defaults.get("method", {}).get(method.get("kind"), {})
        content["method"] = merged(method, of_kind)
    return content


def _cell(content: dict[str, Any], source: str, platform: Platform) -> Cell:
    parts: dict[str, Any] = {
        "id": f"{source}/{content.get('name')}",
        "scenario": source,
        "device": platform.device,
        "model": ModelSpec.model_validate({"name": "model"} | content.get("model", {})),
        "method": _METHOD.validate_python(content.get("method", {})),
        "data": _DATA.validate_python(content["data"]) if "data" in content else SyntheticData(),
        "training": TrainingSpec.model_validate(content.get("training", {})),
    }
    rest = {"window": WindowSpec(), "evaluation": EvaluationSpec(), "limits": LimitsSpec()}
    return Cell(**parts, **rest)


def _explain(error: ValidationError, at: tuple[str | int, ...], problems: Problems) -> None:
    """Note each of pydantic's complaints at the key it is about."""
    for detail in error.errors():
        cause = detail.get("ctx", {}).get("error")
        where = (error.title.removesuffix("Spec").lower(), *detail["loc"])
        path = (*at, *(where if problems.stands((*at, where[0])) else detail["loc"]))
        message = str(cause) if isinstance(cause, ValueError) else detail["msg"]
        problems.add(path, f"{message[:1].lower()}{message[1:].rstrip('.')}; correct it")
