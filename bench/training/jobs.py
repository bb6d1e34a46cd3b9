"""What a worker can be asked to do. Errors leave as exceptions; the worker's frame classifies them."""

import logging
import warnings
from pathlib import Path

import torch

from bench.probes.out_of_memory import ignore, noted_out_of_memory
from bench.probes.phases import Send
from bench.probes.snapshot import SnapshotRecorder, nothing_to_snapshot
from bench.records.messages import CellJob, FetchJob, ProbeJob, ReadingMade, StepTurns
from bench.scenario.types import Cell, ModelSpec
from bench.training.facts import read_facts


def run_job(job: ProbeJob | FetchJob | CellJob, send: Send) -> None:
    """Do the job and send its readings; the caller says that it finished."""
    quiet_libraries()
    if isinstance(job, ProbeJob):
        send(ReadingMade(reading=read_facts()))
    elif isinstance(job, FetchJob):
        _fetch(job)
    else:
        _run_cell(job, send)


def _fetch(job: FetchJob) -> None:
    from bench.training.weights import fetch_weights

    fetch_weights(ModelSpec.model_validate_json(job.model_json))


def _run_cell(job: CellJob, send: Send) -> None:
    """Run the window, watched: an exception leaves with what the allocator held, a snapshot is written."""
    from bench.training.step import device_of
    from bench.training.window import run_window

    cell = Cell.model_validate_json(job.cell_json)
    device = device_of(cell)
    if job.turns is not None:
        _run_in_turn(cell, job.turns, send, trust_remote_code=job.trust_remote_code)
        return
    recorder = _recorder(job.snapshot_path, device, send)
    with noted_out_of_memory(device, recorder.keep if recorder else ignore):
        try:
            if recorder:
                recorder.start()
            after_warmup = recorder.after_warmup if recorder else ignore
            run_window(cell, send, trust_remote_code=job.trust_remote_code, after_warmup=after_warmup)
        except BaseException:
            if recorder:
                recorder.failed()
            raise


def _run_in_turn(cell: Cell, given: StepTurns, send: Send, *, trust_remote_code: bool) -> None:
    """Run the window when it is this run's turn, and between the other's steps."""
    from bench.training.turns import Turns
    from bench.training.window import run_window

    turns = Turns(given, threads=torch.get_num_threads())
    turns.begin()
    send(ReadingMade(reading=turns.caveat()))
    run_window(
        cell, turns.between_steps(send), trust_remote_code=trust_remote_code, after_warmup=turns.hand_over
    )


def _recorder(path: str | None, device: torch.device, send: Send) -> SnapshotRecorder | None:
    """Return what records the allocator's history; None where nobody asked or, as is said, there is none."""
    if path is None:
        return None
    if device.type != "cuda":
        send(ReadingMade(reading=nothing_to_snapshot()))
        return None
    return SnapshotRecorder(Path(path), send)


def quiet_libraries() -> None:
    """Keep libraries from logging at every step: writing that down would be measured too."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.simplefilter("once")
