"""What a cell would ask of its model that it has not, seen before anything is traced: positions, tokens."""

from functools import cache
from pathlib import Path
from typing import Any

from bench.io import parse_json, read_data
from bench.predict.trace.depth import depth_of_model, shallow
from bench.predict.trace.trace import worst_batch
from bench.records.predictions import Refusal
from bench.records.readings import Caveat
from bench.scenario.cell import Cell
from bench.scenario.types import JsonlData, ModelSpec
from bench.training.loading.reach import OutOfReachError, require_reach, require_rows
from bench.training.rows.data import tokenise
from bench.training.rows.examples import load_examples


def refused_as_unreachable(cell: Cell, config: Any) -> Refusal | None:
    """Return the refusal of a cell that asks for positions or tokens that its model has not; None if none.

    Tokens of a data file are looked at where the tokenizer at hand has more than the embedding has rows.
    """
    try:
        require_reach(cell, _cut(config), [worst_batch(cell, 1)])
        rows = int(config.get_text_config().vocab_size)
        folder = _folder(cell.model)
        if folder is not None and isinstance(cell.data, JsonlData) and _tokens_known(folder) > rows:
            require_rows(cell, config, _largest_id(folder, cell.data, cell.loop.takes_pairs))
    except OutOfReachError as error:
        return Refusal(message=str(error), longest_tokens=error.positions)
    return None


def _cut(config: Any) -> Any:
    """Return a configuration with as few layers as are unlike: the others look up the same positions."""
    try:
        depth = depth_of_model(config)
    except Exception:  # noqa: BLE001 - one that builds no model is refused where it is traced
        return config
    return shallow(config, depth.period) if depth else config


def beyond_training(cell: Cell, config: Any) -> Caveat | None:
    """Say where sequences are longer than a rotary model was trained for: only their memory is known."""
    known = getattr(config.get_text_config(), "max_position_embeddings", None)
    length = cell.training.sequence_length
    if not isinstance(known, int) or length <= known:
        return None
    message = (
        f"{length:,} tokens are more than the {known:,} that the configuration of {cell.model.name} names "
        "(max_position_embeddings): the memory is that of such a run, which needs its positions scaled to "
        "be of use."
    )
    return Caveat(code="beyond-trained-positions", message=message)


def _folder(model: ModelSpec) -> Path | None:
    """Return where a model's tokenizer lies on this machine; None where it does not."""
    if model.path is not None:
        return Path(model.path)
    if model.hub is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model.hub, "tokenizer.json", revision=model.revision)
    return Path(cached).parent if isinstance(cached, str) else None


@cache
def _tokens_known(folder: Path) -> int:
    """Return how many ids a folder's tokenizer has, by its tokenizer.json; 0 where that cannot be read."""
    try:
        read = parse_json(read_data(folder / "tokenizer.json"))
        words = read["model"]["vocab"]
        ids: list[int] = [*(words.values() if isinstance(words, dict) else range(len(words)))]
        return 1 + max([*ids, *(int(one["id"]) for one in read.get("added_tokens", ()))])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


@cache
def _largest_id(folder: Path, data: JsonlData, pairs: bool) -> int:  # noqa: FBT001 - of a cached function's key
    """Tokenise a data file as a run would; return the largest id in it, or that rows are padded with."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = load_examples(data, tokenizer, pairs=pairs).examples
    return max((int(max(piece.ids, default=0)) for piece in tokenise(examples, tokenizer)), default=0)
