"""What a worker can be asked to do. Errors leave as exceptions; the worker's frame classifies them."""

import logging
import warnings

from bench.probes.phases import Send
from bench.results.messages import CellJob, FetchJob, ProbeJob, ReadingMade
from bench.spec.types import Cell, ModelSpec
from bench.window.facts import read_facts


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
    from bench.window.weights import fetch_weights

    fetch_weights(ModelSpec.model_validate_json(job.model_json))


def _run_cell(job: CellJob, send: Send) -> None:
    from bench.window.window import run_window

    run_window(Cell.model_validate_json(job.cell_json), send, trust_remote_code=job.trust_remote_code)


def quiet_libraries() -> None:
    """Keep libraries from logging at every step: writing that down would be measured too."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.simplefilter("once")
