"""What a script loads: models without weights, and once it has made its steps the longest rows of its data.

transformers' own from_pretrained runs, and only what reads a checkpoint is replaced. What a loop needs most
for is its longest batch, which the first steps seldom have.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from bench.predict.script.card import Patches
from bench.predict.script.ledger import ScriptState, place
from bench.predict.trace.loading import load_weights
from bench.training.loading.models import quantise_empty, stored_as, unpacked_as_loaded

_KEYS = ("missing", "unexpected", "mismatched", "skipped_pp")
"""What a loading report lists: nothing here."""


@contextmanager
def without_weights(state: ScriptState) -> Iterator[None]:
    """Let models be loaded in a block from their configurations alone, and saved nowhere."""
    from transformers import modeling_utils
    from transformers.generation.stopping_criteria import EosTokenCriteria
    from transformers.modeling_utils import PreTrainedModel

    load, read_state = PreTrainedModel.from_pretrained.__func__, modeling_utils.load_state_dict

    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        with state.truthful():
            return load(cls, *args, **kwargs)

    def loaded(model: Any, _state: Any, _files: Any, config: Any, *_: Any, **__: Any) -> tuple[Any, None]:
        model.tie_weights()
        model.hf_quantizer = quantiser = config.hf_quantizer
        packed = stored_as(model.config) if quantiser is not None and quantiser.pre_quantized else None
        if packed and not packed.startswith("bitsandbytes"):
            raise state.refuse(
                f"loads weights that are stored quantised ({packed}), which is not counted here; "
                "name a 16-bit checkpoint, or one that bitsandbytes stored."
            )
        unpacked_as_loaded(model, config.dtype, config.dtype if packed else None)
        places = {str(each) for each in (config.device_map or {"": "cpu"}).values()}
        if len(places) > 1 or "disk" in places:
            raise state.refuse(
                f"spreads the model over {', '.join(sorted(places))}: not all of it fits on the card, and "
                "offloading is not predicted; quantise it, or name a larger card."
            )
        _enter(state, model, on_card=not places & {"cpu"})
        keys: dict[str, Any] = {f"{kind}_keys": set() for kind in _KEYS}
        return modeling_utils.LoadStateDictInfo(error_msgs=[], conversion_errors={}, **keys), None

    def files(**given: Any) -> tuple[list[str], None]:
        """Name the weights' file where there is one: its head tells a dtype that a configuration does not."""
        folder = Path(
            str(given["pretrained_model_name_or_path"]), given["download_kwargs"].get("subfolder", "")
        )
        return [str(next(iter(sorted(folder.glob("*.safetensors"))), "none.safetensors"))], None

    def stored(file: str, **how: Any) -> Any:
        if Path(file).exists():
            return read_state(file, **how)
        state.notes[f"the dtype of the weights at {place()}: none is configured, so fp32 is taken"] = None
        return {"": torch.empty(0, dtype=torch.float32)}

    def save(*_args: Any, **_kwargs: Any) -> None:
        state.notes[f"nothing is saved at {place()}"] = None

    def no_end(_self: Any, ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)  # all are generated in full

    with ExitStack() as stack:
        patches = Patches(stack)
        patches.put(EosTokenCriteria, "__call__", no_end)
        patches.put(modeling_utils, "_get_resolved_checkpoint_files", files)
        patches.put(modeling_utils, "load_state_dict", stored)
        patches.put(PreTrainedModel, "from_pretrained", classmethod(from_pretrained))
        patches.put(PreTrainedModel, "_load_pretrained_model", staticmethod(loaded))
        patches.put(PreTrainedModel, "_finalize_model_loading", staticmethod(lambda _m, _c, info: info))
        patches.put(PreTrainedModel, "save_pretrained", save)
        yield


def _enter(state: ScriptState, model: Any, *, on_card: bool) -> None:
    """Let the weights arrive: on the card one after the other, on the CPU without being counted."""
    if state.on_cpu or not on_card:
        for module in model.modules() if state.on_cpu else ():
            quantise_empty(module)
        for tensor in () if state.on_cpu else (*model.parameters(), *model.buffers()):
            state.hosts.add(tensor)
        return
    before, state.paused = state.paused, 0
    try:
        state.ledger.mark("load")
        state.ledger.name_modules(model)
        load_weights(model, state.ledger)
        state.ledger.mark("adapt")
    finally:
        state.paused = before


MOST_ROWS = 20_000  # that are looked at
_OF_WORKERS = "num_workers", "prefetch_factor", "persistent_workers", "timeout", "multiprocessing_context"
STEPS = 2  # since a loader fetches a batch ahead


class LongestBatch:
    """Watches which rows a data loader fetches; once ``wanted`` it is given the longest instead.

    All fetch in this process, whatever they were asked. Loaders over data sets without positions go on as
    they are.
    """

    def __init__(self, state: ScriptState, stack: ExitStack) -> None:
        """Watch until ``stack`` is closed."""
        from torch.utils.data import DataLoader
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

        make: Any = DataLoader.__init__
        takes = signature(make)

        def alone(*args: Any, **kwargs: Any) -> None:
            given = takes.bind(*args, **kwargs)
            for name in _OF_WORKERS:
                given.arguments.pop(name, None)
            make(*given.args, **given.kwargs)

        patches = Patches(stack)
        patches.put(_MapDatasetFetcher, "fetch", fetched)
        patches.put(DataLoader, "__init__", alone)

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
