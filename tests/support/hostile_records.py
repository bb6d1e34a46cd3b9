"""Records and plans whose every free text is a script, as a stranger's file may be."""

from bench.records.predictions import Plan, PlannedCell, Refusal
from bench.records.records import Failure, Record
from records_factory import make_cell, make_ledger, make_measurement, make_prediction, make_record

SCRIPT = "<script>alert(1)</script>"
TEXT = f"\"'>{SCRIPT}<img src=x onerror=alert(1)>&lt;"


def make_hostile_records() -> tuple[Record, ...]:
    """Return a good run and a failed one; names that the schema would refuse are put in past it."""
    cell = make_cell()
    model = cell.model.model_copy(update={"name": TEXT})
    cell = cell.model_copy(update={"model": model, "scenario": TEXT, "id": f"{TEXT}/a/b/c"})
    base = make_measurement()
    assert base.model is not None
    facts = base.model.replace(source=TEXT, weights_note=TEXT)
    ledger = make_ledger(peak_op=TEXT, peak_module=TEXT)
    good = make_record(key="e" * 64, measurement=base.replace(model=facts, ledger=ledger))
    other = cell.model_copy(update={"id": f"{TEXT}/other/b/c"})
    failed = make_record(key="f" * 64, outcome="failed", failure=Failure(message=TEXT), measurement={})
    return good.replace(cell=cell), failed.replace(cell=other)


def make_hostile_plan() -> Plan:
    """Return a plan with a cell and a refusal."""
    cell = make_cell().model_copy(update={"id": f"{TEXT}/{TEXT}"})
    refused = make_cell().model_copy(update={"id": f"x{TEXT}"})
    return Plan(
        scenario=TEXT,
        title=TEXT,
        cards=(),
        cells=(
            PlannedCell(cell=cell, answer=make_prediction(peak_op=TEXT, peak_module=TEXT)),
            PlannedCell(cell=refused, answer=Refusal(message=TEXT)),
        ),
    )
