"""transformers' own from_pretrained without weights: only what reads a checkpoint is replaced."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from bench.predict.script.card import Patches
from bench.predict.script.ledger import ScriptState, place
from bench.predict.trace.loading import load_weights
from bench.training.loading.checkpoints import stored_as
from bench.training.loading.models import quantise_empty, unpacked_as_loaded

_KEYS = ("missing", "unexpected", "mismatched", "skipped_pp")
"""What a loading report lists: nothing here."""


@contextmanager
def without_weights(state: ScriptState) -> Iterator[None]:
    """Let models be loaded in a block from their configurations alone, and saved nowhere."""
    from transformers import modeling_utils
    from transformers.generation.stopping_criteria import EosTokenCriteria
    from transformers.modeling_utils import PreTrainedModel

    load = PreTrainedModel.from_pretrained.__func__

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

    def save(*_args: Any, **_kwargs: Any) -> None:
        state.notes[f"nothing is saved at {place()}"] = None

    def no_end(_self: Any, ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)  # all are generated in full

    with ExitStack() as stack:
        patches = Patches(stack)
        patches.put(EosTokenCriteria, "__call__", no_end)
        patches.put(
            modeling_utils, "_get_resolved_checkpoint_files", lambda **_: (["none.safetensors"], None)
        )
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
