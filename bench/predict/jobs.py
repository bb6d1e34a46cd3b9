"""Predictions as a worker's job: of cells, and of a script of the user's.

A server that forks such workers imports this module once, for all of them. Nothing that evaluates or reads
data is imported. Errors leave as exceptions; the worker's frame classifies them.
"""

import gc
import os
import socket
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from bench.predict.allocator.settings import AllocatorSettings
from bench.predict.predict import predict_all
from bench.predict.trace.trace import at_length
from bench.records.messages import CellSeen, PlanJob, PredictionMade, ScriptPlanJob, Send
from bench.records.predictions import Prediction, Refusal
from bench.records.readings import Caveat
from bench.scenario.cell import Cell
from bench.training.jobs import longest_row, quiet_libraries

_connect = socket.socket.connect


def run_plan(job: PlanJob, send: Send) -> None:
    quiet_libraries()
    gc.disable()  # a worker ends with its job; what a trace leaves is freed without
    if job.platform.device != "cpu":  # of which a machine's card holds for its threads
        torch.set_num_threads(1)  # there is no data to share among more
    cells = [Cell.model_validate_json(text) for text in job.cells_json]
    settings = AllocatorSettings.parse(job.allocator)
    rows = {cell.id: row for cell in cells if (row := longest_row(cell)) is not None}
    cells = [_no_longer(cell, rows.get(cell.id)) for cell in cells]
    predicted = predict_all(cells, job.platform, settings, reuse_ranges=job.reuse_ranges, cards=job.cards)
    for cell, answer in predicted:
        told = _as_long_as(answer, rows[cell.id]) if cell.id in rows else answer
        send(PredictionMade(cell_id=cell.id, answer=told))


def _no_longer(cell: Cell, row: int | None) -> Cell:
    """Return a cell whose sequences are as long as the longest row, where that is shorter."""
    return cell if row is None or not 1 < row < cell.training.sequence_length else at_length(cell, row)


def _as_long_as(answer: Prediction | Refusal, row: int) -> Prediction | Refusal:
    """Say of which length a prediction is, in the place of the full one."""
    if isinstance(answer, Refusal):
        return answer
    message = f"Predicted for batches as long as the longest row of the data, {row:,} tokens."
    told = Caveat(code="longest-row", message=message)
    caveats = (told if caveat.code == "full-length-batch" else caveat for caveat in answer.caveats)
    return answer.model_copy(update={"caveats": tuple(caveats)})


def run_script_plan(job: ScriptPlanJob, send: Send) -> None:
    """Predict a script, away from the user's files and from the network."""
    from bench.predict.script.folder import working_in_links
    from bench.predict.script.predict import predict_script

    settings = AllocatorSettings.parse(job.allocator)
    if job.code_folder:
        os.chdir(job.code_folder)
    if not job.online:
        patch.object(socket.socket, "connect", _without_network).start()  # a worker ends with its job
    with tempfile.TemporaryDirectory(prefix="bench-predicted-") as folder, working_in_links(Path(folder)):
        cell, answer = predict_script(
            job.command, job.platform, job.card, steps=job.steps, through=job.through, settings=settings
        )
    if cell is not None:
        send(CellSeen(cell_json=cell.model_dump_json()))
    send(PredictionMade(cell_id="" if cell is None else cell.id, answer=answer))


def _without_network(connecting: socket.socket, address: Any) -> None:
    if connecting.family != socket.AF_UNIX:  # by which a loader's workers hand over their batches
        raise OSError(f"a predicted script has no network, and asked for {address}; allow it with --online")
    _connect(connecting, address)
