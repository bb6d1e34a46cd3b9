"""The longest rows of a script's data, put into the steps after those that it would take by itself.

What a loop needs most for is its longest batch, which the first steps seldom have.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from bench.predict.script.card import Patches
from bench.predict.script.ledger import ScriptState

MOST_ROWS = 20_000  # that are looked at
STEPS = 2  # since a loader fetches a batch ahead


class LongestBatch:
    """Watches which rows a data loader fetches; once ``wanted`` it is given the longest instead.

    Loaders over data sets without positions, and those that fetch in other processes, go on as they are.
    """

    def __init__(self, state: ScriptState, stack: ExitStack) -> None:
        """Watch until ``stack`` is closed."""
        from torch.utils.data._utils.fetch import _MapDatasetFetcher

        self._state = state
        self._fetched: dict[int, tuple[Any, set[Any]]] = {}
        self._order: dict[int, list[int]] = {}
        self.wanted = False
        fetch: Any = _MapDatasetFetcher.fetch

        def fetched(fetcher: Any, index: Any) -> Any:
            if isinstance(index, list):
                dataset, rows = self._fetched.setdefault(id(fetcher.dataset), (fetcher.dataset, set()))
                if self.wanted and (order := self._order.get(id(dataset))):
                    index = order[: len(index)]
                rows.update(index)
            return fetch(fetcher, index)

        Patches(stack).put(_MapDatasetFetcher, "fetch", fetched)

    def is_to_come(self) -> bool:
        """Tell whether some data has longer rows than were fetched, and from now on give those."""
        for key, (dataset, rows) in self._fetched.items():
            try:
                count = min(len(dataset), MOST_ROWS)
                with self._state.truthful():
                    sizes = [_size(dataset[at]) for at in range(count)]
            except (TypeError, KeyError, IndexError, NotImplementedError):
                continue
            seen = [sizes[at] for at in rows if isinstance(at, int) and at < count]
            if sizes and max(sizes) > max(seen, default=0):
                self._order[key] = sorted(range(count), key=sizes.__getitem__, reverse=True)
        self.wanted = bool(self._order)
        return self.wanted


def _size(row: Any) -> int:
    """Return how long a row is: its token ids, or the longest of its parts."""
    if isinstance(row, Mapping):
        return _size(row["input_ids"]) if "input_ids" in row else max(map(_size, row.values()), default=0)
    if isinstance(row, torch.Tensor):
        return row.numel()
    if isinstance(row, str | bytes):
        return len(row)
    if isinstance(row, Sequence):
        parts = [part for part in row if isinstance(part, torch.Tensor | str | list)]
        return max(map(_size, parts)) if parts else len(row)
    return 0
