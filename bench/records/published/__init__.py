"""Published measurements, each with the cell that was measured; ``score.py`` holds predictions against them.

``data/README.md`` documents the format of rows (TOML), which any file may use.
"""

import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from bench.errors import ScenarioError
from bench.records.readings import Count, Positive
from bench.scenario.cell import Cell
from bench.scenario.diagnostics import Path as KeyPath
from bench.scenario.diagnostics import Problems, shown
from bench.scenario.layout import CATALOGUED
from bench.scenario.load import read_document
from bench.scenario.matrix import merged
from bench.scenario.platform import Platform
from bench.scenario.types import Frozen, Name, SyntheticData

_Model = TypeVar("_Model", bound=BaseModel)
RowName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+=:,@/~-]*$", max_length=200)]
"""Whatever may stand in the id of a cell."""
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
    loop: str = Field("", description="Which loop ran, and in what the one that is predicted still differs.")


class _Bounded(Frozen):
    """A number and its bounds, three fields by name; without bounds it is exact."""

    fields: ClassVar[tuple[str, str, str]]

    @model_validator(mode="before")
    @classmethod
    def _exact_unless_bounded(cls, data: Any) -> Any:
        low, value, high = cls.fields
        if isinstance(data, dict) and value in data:
            return {low: data[value], high: data[value]} | data
        return data

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        values = [getattr(self, name) for name in self.fields]
        if values != sorted(values):
            raise ValueError(f"{self.fields[0]}, {self.fields[1]} and {self.fields[2]} must rise")
        return self


class Measured(_Bounded):
    """One published number in bytes. The bounds say what the published rounding leaves open.

    A moment is the run's ``peak``, the peak until the model is adapted (``adapt_peak``), or the end of a
    phase: of loading, of adapting, or of a part of the first step.
    """

    fields = ("low_bytes", "size_bytes", "high_bytes")
    metric: Metric
    moment: Moment = "peak"
    size_bytes: Positive
    low_bytes: Positive
    high_bytes: Positive


class MeasuredSpeed(_Bounded):
    """One published speed of one GPU: seconds for an optimizer step, or tokens a second.

    ``counted`` says whether tokens that only pad were counted. Of batches that differ in length, ``length``
    is the mean with padding: the cell's own is that of the longest. A ``cold`` mean is over so few steps
    that the first one, slower by what is not predicted, tells in it.
    """

    fields = ("low", "value", "high")
    metric: Literal["step_time_s", "tokens_per_second"]
    value: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    counted: Literal["raw", "non_padding"] = "raw"
    length: Positive | None = None
    cold: bool = False


class Row(Frozen):
    """One run that was measured. ``refused`` says why it cannot be expressed; then there is no cell."""

    name: RowName
    source: Name
    tier: Literal[1, 2, 3] = Field(description="1: known to the byte; 2: one thing inferred; 3: loose.")
    reference: str = Field(description="File or page with the number.")
    date: str
    gpu: str
    software: str = Field(description="Versions as published.")
    note: str = ""
    measured: tuple[Annotated[Measured | MeasuredSpeed, Field(discriminator="metric")], ...] = Field(
        min_length=1
    )
    cell: Cell | None = Field(None, description="The run as the window imitates it.")
    looped: Cell | None = Field(None, description="The run in a library's own loop, if the row names one.")
    varies: bool = Field(default=False, description="Its batches differ in length; its cell's cannot.")
    platform: Platform = Platform()
    allocator: str = Field("", description="PYTORCH_CUDA_ALLOC_CONF of the run; empty for torch's default.")
    steps: tuple[Count, Positive] | None = Field(
        None, description="First and last step that the peak counters cover, from 1; 0 is loading."
    )
    refused: str | None = None

    @model_validator(mode="after")
    def _steps_in_order(self) -> Self:
        if self.steps is not None and self.steps[0] > self.steps[1]:
            raise ValueError("steps must be the first and the last step, in order")
        if self.steps is not None and self.platform.device == "cpu":
            raise ValueError("steps is for counters of CUDA, which can be reset")
        return self

    @property
    def sizes(self) -> tuple[Measured, ...]:
        return tuple(one for one in self.measured if isinstance(one, Measured))

    @property
    def speeds(self) -> tuple[MeasuredSpeed, ...]:
        return tuple(one for one in self.measured if isinstance(one, MeasuredSpeed))

    @property
    def each_loop(self) -> "tuple[Row, ...]":
        """The row as the window imitates it and, if it names a loop, as that runs it, for memory alone."""
        if self.looped is None or self.cell is None or not self.sizes:
            return (self,)
        varies = isinstance(self.cell.data, SyntheticData) and self.cell.data.lengths == "vary"
        return (self, self.model_copy(update={"cell": self.looped, "varies": varies, "measured": self.sizes}))


class RowFile(Frozen):
    """A source and its rows."""

    source: Source
    rows: tuple[Row, ...]


_ROW_KEYS = ("name", "tier", "reference", "date", "gpu", "software", "note", "measured", "allocator", "steps")
_CELL_KEYS = ("model", "method", "data", "training", "parallel")
_KEYS = (*_ROW_KEYS, *_CELL_KEYS, "loop", "platform", "refused")
_LITGPT = re.compile(r"lit-?gpt|lightning", re.IGNORECASE)
_DAY = re.compile(r"\d{4}(-\d{2}){0,2}")
_TAKEN_FOR_LITGPT = (
    'By its name and loss = "chunked" this is taken for litgpt, whose own models are predicted as of each '
    "row's date (set platform.litgpt to say so)."
)
_IMITATES = ("upcast_outputs", "keep_outputs", "use_cache")
"""Settings of the window that say what another loop does, which that loop itself has no need of."""


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
    if any(row and row.platform.litgpt for row in rows) and "litgpt" not in defaults.get("platform", {}):
        source = source.model_copy(update={"note": f"{source.note} {_TAKEN_FOR_LITGPT}".strip()})
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
    content = _run_by_litgpt(merged(table, defaults | {"method": own}), source)
    platform = _checked(Platform, content.get("platform", {}), (*at, "platform"), problems)
    if platform is None:
        return None
    row = {key: content[key] for key in (*_ROW_KEYS, "platform", "refused") if key in content}
    if "refused" not in row:
        _settle(content, at, problems)
        row["cell"] = {
            "id": f"{source}/{content.get('name')}",
            "scenario": source,
            "device": platform.device,
            "model": merged(content.get("model", {}), {"name": "model"}),
            "method": content["method"],
            "data": _data_of(content),
            "training": content.get("training", {}),
            "parallel": content.get("parallel", {}),
            **{group: {} for group in ("window", "evaluation", "limits")},
        }
    read, loop = _checked(Row, row | {"source": source}, at, problems), content.get("loop")
    none = loop is None or (isinstance(loop, dict) and loop.get("driver") == "window")
    if read is None or read.cell is None or none:
        return read
    part: dict[str, Any] = row["cell"]
    training = {key: value for key, value in part["training"].items() if key not in _IMITATES}
    data = {key: value for key, value in part["data"].items() if key != "lengths"}  # which it cannot vary
    looped = _checked(Cell, part | {"data": data, "training": training, "loop": loop}, at, problems)
    return read.model_copy(update={"looped": looped})


def _run_by_litgpt(content: dict[str, Any], source: str) -> dict[str, Any]:
    """Return a row's content with what follows from litgpt having run it, if its platform or source says so.

    Its loss in chunks keeps the logits of all of them, and only such a loss has logits to copy or to keep.
    """
    training, platform = content.get("training", {}), content.get("platform", {})
    if not (isinstance(training, dict) and isinstance(platform, dict)) or training.get("loss") != "chunked":
        return content
    keeps_logits = training.get("upcast_outputs") or training.get("keep_outputs")
    date = str(content.get("date"))
    named = _LITGPT.search(f"{source} {content.get('software')}") and _DAY.fullmatch(date)
    if "litgpt" not in platform and keeps_logits and named:
        platform = platform | {"litgpt": f"{date}-01-01"[: len("2024-01-01")]}
    if "litgpt" in platform:
        training = training | {"loss": "chunked-logits"}
    return content | {"training": training, "platform": platform}


def _data_of(content: dict[str, Any]) -> Any:
    """Return a row's data: of a loose one no more is known of its batches than the length of the longest."""
    data = content.get("data", {"source": "synthetic"})
    if content.get("tier") == 3 and isinstance(data, dict) and data.get("source", "synthetic") == "synthetic":  # noqa: PLR2004 - as in the format
        return {"lengths": "vary"} | data
    return data


def _settle(content: dict[str, Any], at: KeyPath, problems: Problems) -> None:
    """Note names that no catalogue has, and take a path as relative to the file that holds it."""
    for part in ("model", "data"):
        table = content.get(part, {})
        for key, value in table.items() if isinstance(table, dict) else ():
            own = (*at, part, key)
            place = own if problems.stands(own) else ("defaults", part, key)
            if key in CATALOGUED and isinstance(value, str):
                what, known = CATALOGUED[key]
                if value not in known():
                    problems.add(place, f"unknown {what} {shown(value)}", value, known())
            elif key == "path" and isinstance(value, str):
                content[part] = table | {key: str(Path(problems.locate(place).file).parent / value)}


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
