"""What a model can look up: positions that it has learned, and ids that its embedding has a row for.

Nothing is known of architectures here. A model's own code is run without data but for what it works out of
itself, such as positions, so that a look-up beyond a table is seen before a CPU would end in an IndexError
and a card in an assertion.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from bench.errors import UsageError
from bench.scenario.cell import Cell, virtual_tokens
from bench.training.loading.models import empty_causal_model
from bench.training.rows.data import Batch

_SHORT = 8  # tokens, for which every model has positions
_MOST_ELEMENTS = 1 << 20  # of a tensor whose values are followed; those of masks over pairs of tokens are not
_MOST_OPERATORS = (
    6_000  # positions are looked up before that; a recurrence written in Python goes on for long
)
_WITHOUT_VALUES = ("aten::empty", "aten::new_empty", "aten::rand", "aten::normal")
_CPU, _META = torch.device("cpu"), torch.device("meta")
_ITEM = torch.ops.aten._local_scalar_dense.default  # noqa: SLF001 - its only name
_reached: dict[str, list[int]] = {}
"""By configuration: positions known to be there, and after them one that is known not to be."""


class OutOfReachError(UsageError):
    """A cell asks a model for positions or tokens that it has not; ``positions`` is what it has, if known."""

    def __init__(self, message: str, positions: int | None = None) -> None:
        super().__init__(message)
        self.positions = positions


class _BeyondError(Exception):
    """A look-up is this many rows beyond its table."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows


class _LongError(Exception):
    """So much was run that no position is looked up any more."""


class _Positions(TorchDispatchMode):
    """Follows small values on the CPU, leaves all else without data, and checks look-ups in tables."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self._left = _MOST_OPERATORS

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._left -= 1
        if not self._left:
            raise _LongError
        given = (args, dict(kwargs or {}))
        _require_within(func, args)
        tensors = [each for each in tree_leaves(given) if isinstance(each, Tensor)]
        known = all(each.device == _CPU for each in tensors)
        schema = func._schema  # noqa: SLF001 - its only name
        known = known and not schema.name.startswith(_WITHOUT_VALUES)
        at_once = func is _ITEM or (schema.is_mutable and tensors)
        return _run(func, given, _CPU if known and (at_once or _is_small(func, given)) else _META)


def _is_small(func: Any, given: tuple[Any, Any]) -> bool:
    """Tell whether an operator's results are few enough to be worked out."""
    try:
        made = _run(func, given, _META)
    except NotImplementedError:  # the size depends on values
        return True
    return all(each.numel() <= _MOST_ELEMENTS for each in tree_leaves(made) if isinstance(each, Tensor))


def _run(func: Any, given: tuple[Any, Any], device: torch.device) -> Any:
    """Run an operator with its tensors, and what it makes, on a device."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value if value.device == device else torch.empty_like(value, device=device)
        return device if isinstance(value, torch.device) else value

    args, kwargs = tree_map(moved, given)
    return func(*args, **kwargs)


def _require_within(func: Any, args: Sequence[Any]) -> None:
    """Raise for indices with values that are beyond the rows of a table."""
    match func._schema.name.partition("::")[2]:  # noqa: SLF001 - its only name
        case "embedding":
            pairs = [(0, args[1])]
        case "gather" | "index_select":
            pairs = [(args[1], args[2])]
        case "index":
            pairs = list(enumerate(args[1]))
        case _:
            return
    for dimension, index in pairs:
        known = isinstance(index, Tensor) and index.device == _CPU and index.dtype is not torch.bool
        if known and index.numel() and (rows := int(index.max()) + 1 - args[0].shape[dimension]) > 0:
            raise _BeyondError(rows)


def require_reach(cell: Cell, config: Any, batches: Iterable[Batch]) -> None:
    """Raise ``OutOfReachError`` where batches ask a configuration's model for positions or ids it has not.

    A rotary model has every position. So has, for all that can be known, one whose code cannot be run so.
    """
    positions = largest_id = 0
    for batch in batches:
        given, length = batch.position_ids, batch.input_ids.shape[1]
        positions = max(positions, length if given is None else int(given.max()) + 1)
        largest_id = max(largest_id, int(batch.input_ids.max()))
    require_rows(cell, config, largest_id)
    own = virtual_tokens(cell.method)
    reach = _positions(config, positions + own)
    if reach < positions + own:
        besides = f" ({own} of them are the method's own)" if own else ""
        raise OutOfReachError(
            f"{positions + own:,} tokens{besides} are beyond the {reach:,} positions of {cell.model.name}, "
            f"which it looks up in a table; set training.sequence_length to at most {reach - own:,}.",
            reach - own,
        )


def require_rows(cell: Cell, config: Any, largest_id: int) -> None:
    """Raise ``OutOfReachError`` for a token that a configuration's embedding has no row for."""
    rows = int(config.get_text_config().vocab_size)
    if largest_id >= rows:
        raise OutOfReachError(
            f"the data has a token with id {largest_id:,}, beyond the {rows:,} rows of the embedding of "
            f"{cell.model.name}; give the tokenizer that belongs to the model, or save the model with an "
            "embedding that was resized to its tokenizer."
        )


def _positions(config: Any, asked: int) -> int:
    """Return how many positions a model has; as many as are asked for where there is no end to them."""
    known = _reached.setdefault(config.to_json_string(use_diff=False), [_SHORT])
    if asked > known[0] and len(known) == 1:
        reach = _reach(config, asked)
        known[:] = [asked] if reach is None else [reach, reach + 1]
    return min(known[0], asked)


def _reach(config: Any, asked: int) -> int | None:
    """Run a model at a length; where a look-up fails, return the longest at which none does."""
    try:
        with _Positions():
            model = empty_causal_model(config)
    except Exception:  # noqa: BLE001 - a configuration that builds no model is refused where that is told
        return None
    beyond = _beyond(model, asked)
    if not beyond or _beyond(model, _SHORT):  # what fails at any length is no table
        return None
    if not _beyond(model, asked - beyond) and _beyond(model, asked - beyond + 1):
        return asked - beyond
    low, high = _SHORT, asked
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _beyond(model, middle) else (middle, high)
    return low


def _beyond(model: Any, length: int) -> int:
    """Run a model on one row; return how many rows a look-up lacks: 1 if it fails in another way."""
    ids = torch.zeros((1, max(length, 1)), dtype=torch.int64, device=_CPU)
    try:
        with torch.no_grad(), _Positions():
            model(input_ids=ids, use_cache=False)
    except _BeyondError as error:
        return error.rows
    except _LongError:
        return 0
    except Exception:  # noqa: BLE001 - whatever a model's code raises for a length that its tables lack
        return 1
    return 0
