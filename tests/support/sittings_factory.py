"""Sittings for tests, written as a gate writes them: made-up records of both sides, in A B B A order."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.gate.session_log import order_of
from bench.io import write_json
from bench.records.records import Record
from bench.records.sessions import SIDES, SideFacts, SideName, Sitting, SittingRun
from bench.records.store import record_file_name, write_record
from bench.scenario.gate import GateSpec
from records_factory import make_cell, make_evaluation, make_ledger, make_measurement, make_record, make_steps

MIB = 1024**2
QUIET = (1000.0, 1003.0, 998.0, 1001.0, 1000.0)
"""Speeds of five runs, in tokens/s, that spread by a fifth of a per cent."""

LOUD = (1000.0, 1300.0, 800.0, 1150.0, 900.0)


def make_runs(
    cell: str = "tiny/a",
    *,
    speeds: Sequence[float] = QUIET,
    ledger_bytes: int = 600 * MIB,
    right: int = 150,
    outcome: str = "ok",
) -> list[Record]:
    """Return a side's runs of one cell: one for each speed, of 200 questions the first so many right.

    What did not end well was not repeated, and measured nothing.
    """
    shared: dict[str, Any] = {"cell": make_cell(id=cell), "outcome": outcome}
    if outcome != "ok":
        return [make_record(**shared, measurement={})]
    evaluations = (make_evaluation("after", [index < right for index in range(200)]),)
    return [
        make_record(
            **shared,
            run=number,
            started_at=f"2026-11-22T08:00:{number:02}Z",
            measurement=make_measurement(
                steps=make_steps([speed] * 8), ledger=make_ledger(ledger_bytes), evaluations=evaluations
            ),
        )
        for number, speed in enumerate(speeds, start=1)
    ]


def write_sitting(
    folder: Path,
    base: Sequence[Record],
    candidate: Sequence[Record],
    **changes: Any,
) -> Path:
    """Write a sitting of these runs that has ended, and return its folder."""
    sides: Mapping[SideName, Sequence[Record]] = {"base": base, "candidate": candidate}
    ids = list(dict.fromkeys(record.cell.id for side in SIDES for record in sides[side]))
    runs = []
    for cell in ids:
        made = {side: [record for record in sides[side] if record.cell.id == cell] for side in SIDES}
        for repeat in range(1, 1 + max(map(len, made.values()))):
            for side in order_of(repeat):
                for record in made[side][repeat - 1 : repeat]:
                    (folder / side).mkdir(parents=True, exist_ok=True)
                    write_record(folder / side, record)
                    runs.append(
                        SittingRun(
                            cell=cell,
                            side=side,
                            purpose="measured",
                            repeat=repeat,
                            started_at=record.started_at,
                            total_ns=record.total_ns,
                            outcome=record.outcome,
                            file=record_file_name(record),
                        )
                    )
    facts = SideFacts(kind="environment", understood="the environment as it is")
    fields: dict[str, Any] = {
        "scenario": "example",
        "cells": ids,
        "base": facts,
        "candidate": facts,
        "looks": (3, 5, 8),
        "gate": GateSpec(),
        "started_at": "2026-11-22T08:00:00Z",
        "ended_at": "2026-11-22T09:00:00Z",
        "stopped": "decided",
        "runs": runs,
    }
    write_json(folder / "sitting.json", Sitting.model_validate(fields | changes))
    return folder
