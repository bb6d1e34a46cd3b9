"""The part of a record that verdicts go by, decoded in a tenth of the time that the whole of it takes.

A gate over thousands of records would spend most of its time on what it does not look at. Only what is
named here is decoded and checked; names and meanings are those of ``records.py``, and ``readings.py`` reads
both.
"""

from typing import Annotated, cast

import msgspec
from msgspec import Meta, Struct

from bench.records.records import Outcome, Phase, Record

_Count = Annotated[int, Meta(ge=0)]
_Positive = Annotated[int, Meta(gt=0)]


class BriefDevice(Struct, frozen=True):
    """See ``records.DeviceFacts``."""

    cuda_name: str | None = None
    host_peak_instrument: str = "unavailable"


class BriefModel(Struct, frozen=True):
    """See ``records.ModelFacts``."""

    parameters_trainable: _Count
    adapter_file_bytes: _Count | None = None


class BriefPhase(Struct, frozen=True):
    """See ``records.PhaseReading``."""

    name: Phase
    duration_ns: _Count
    host_peak_bytes: _Count | None = None
    cuda_allocated_peak_bytes: _Count | None = None
    cuda_reserved_peak_bytes: _Count | None = None


class BriefTokens(Struct, frozen=True):
    """See ``records.TokenCounts``."""

    non_padding: _Positive


class BriefStep(Struct, frozen=True, gc=False):
    """See ``records.StepSample``."""

    stage: str
    step_time_ns: _Positive
    tokens: BriefTokens


class BriefLedger(Struct, frozen=True):
    """See ``records.LedgerReading``."""

    peak_bytes: _Count
    saved_for_backward_bytes: _Count
    op_count: _Count


class BriefFlops(Struct, frozen=True):
    """See ``records.FlopsReading``."""

    step_flops: _Count


class BriefPaged(Struct, frozen=True):
    """See ``cuda.PagedMemory``."""

    paged_bytes: _Count


class BriefItem(Struct, frozen=True, gc=False):
    """See ``records.EvaluationItem``."""

    doc_id: _Count
    doc_hash: str
    correct: bool


class BriefEvaluation(Struct, frozen=True):
    """See ``records.EvaluationReading``; ``items`` are left as they stand, many being alike."""

    task: str
    when: str
    metric: str
    instrument: str
    num_fewshot: _Count
    items: msgspec.Raw


class BriefGpuFacts(Struct, frozen=True):
    """See ``gpu.GpuFacts``."""

    name: str | None = None
    driver_version: str | None = None
    power_limit_mw: _Count | None = None


class BriefGpuPhase(Struct, frozen=True):
    """See ``gpu.GpuPhase``."""

    name: str
    samples: _Count
    process_peak_bytes: _Count | None = None
    device_peak_bytes: _Count | None = None
    energy_mj: _Count | None = None
    energy_time_ns: _Count | None = None


class BriefGpu(Struct, frozen=True):
    """See ``gpu.GpuReading``."""

    facts: BriefGpuFacts
    isolation: str
    idle_device_bytes: _Count | None = None
    non_torch_bytes: _Count | None = None
    phases: tuple[BriefGpuPhase, ...] = ()

    def phase(self, name: str) -> BriefGpuPhase | None:
        """Return what was seen in one phase, if it was reached."""
        return next((phase for phase in self.phases if phase.name == name), None)


class BriefCaveat(Struct, frozen=True):
    """See ``stored.Caveat``."""

    code: str


class BriefMeasurement(Struct, frozen=True):
    """See ``records.Measurement``; evaluations are hidden from ``readings.read_metrics``."""

    device: BriefDevice | None = None
    gpu: BriefGpu | None = None
    model: BriefModel | None = None
    paged: BriefPaged | None = None
    phases: tuple[BriefPhase, ...] = ()
    steps: tuple[BriefStep, ...] = ()
    ledger: BriefLedger | None = None
    flops: BriefFlops | None = None
    caveats: tuple[BriefCaveat, ...] = ()
    brief_evaluations: tuple[BriefEvaluation, ...] = msgspec.field(default=(), name="evaluations")

    @property
    def evaluations(self) -> tuple[()]:
        """None, so that accuracy is read from the answers alone, once."""
        return ()


class BriefRecord(Struct, frozen=True):
    """See ``records.Record``; ``cell`` and ``environment`` are left as they stand, most being alike."""

    schema_version: Annotated[int, Meta(ge=1, le=1)]
    cell: msgspec.Raw
    key: str
    run: _Positive
    outcome: Outcome
    started_at: str
    environment: msgspec.Raw
    measurement: BriefMeasurement
    inputs_digest: str | None = None


class BriefCell(Struct, frozen=True):
    """See ``spec.types.Cell``."""

    id: str
    scenario: str


_DECODER = msgspec.json.Decoder(BriefRecord)
_CELL = msgspec.json.Decoder(BriefCell)
_ITEMS = msgspec.json.Decoder(tuple[BriefItem, ...])


def read_brief(content: bytes) -> BriefRecord:
    """Decode the text of a record. Raises ``msgspec.DecodeError`` where it is none of this version."""
    return _DECODER.decode(content)


def read_cell_name(content: bytes) -> BriefCell:
    """Decode what a cell is called. Raises ``msgspec.DecodeError`` where it is none."""
    return _CELL.decode(content)


def read_items(content: msgspec.Raw) -> tuple[BriefItem, ...]:
    """Decode the items of an evaluation. Raises ``msgspec.DecodeError`` where they are none."""
    return _ITEMS.decode(content)


def as_record(brief: BriefRecord) -> Record:
    """Return the same for functions of ``readings.py``; but for accuracy they read nothing that it lacks."""
    return cast("Record", brief)
