"""Language models inside a wrapper: which class builds a checkpoint, and what of it text never runs."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from bench.errors import UnavailableError
from bench.metrics import size_text
from bench.records.readings import Caveat

_AUTO = ("AutoModelForCausalLM", "AutoModelForImageTextToText")


class Built(NamedTuple):
    """The auto class that loads or builds a configuration's model, and the class that it takes."""

    auto: Any
    kind: Any


def class_of(config: Any) -> Built:
    """Return what builds the class that the checkpoint names; where it names none, what transformers prefers.

    Raises ``UnavailableError`` where no causal language model can be made of it.
    """
    import transformers

    autos = [getattr(transformers, name) for name in _AUTO]
    offered = [Built(auto, auto._model_mapping.get(type(config), None)) for auto in autos]  # noqa: SLF001 - its only name
    offered = [one for one in offered if one.kind is not None]
    named = _named(config)
    if not offered and _AUTO[0] in (getattr(config, "auto_map", None) or {}):
        return Built(autos[0], None)  # code of the checkpoint's own
    if not offered:
        what = f"{named} (model_type {config.model_type})" if named else f"model_type {config.model_type}"
        raise UnavailableError(
            f"{what} is no language model that predicts the next token, by itself or beside a vision tower; "
            "only such models are trained here, so name another."
        )
    return next((one for one in offered if one.kind.__name__ == named), offered[0])


def _named(config: Any) -> str | None:
    return next(iter(config.architectures or ()), None)


def beside_text(model: Any) -> dict[str, nn.Module]:
    """Return the parts of a wrapper that text never runs, such as a vision tower and its projector, by name.

    They are what stands beside the language model, its embeddings and its output layer.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(model, PreTrainedModel) or model.config.get_text_config() is model.config:
        return {}
    names = {id(module): name for name, module in model.named_modules()}
    used = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    paths = [names[id(module)] for module in used if id(module) in names]
    found, pending = {}, [("", model)]
    while pending:
        prefix, parent = pending.pop()
        for child, module in parent.named_children():
            name = f"{prefix}{child}"
            if any(path.startswith(f"{name}.") for path in paths) and name not in paths:
                pending.append((f"{name}.", module))
            elif name not in paths and any(True for _ in module.parameters()):
                found[name] = module
    return found


def is_beside(name: str, parts: dict[str, Any]) -> bool:
    """Tell whether a module or parameter, whatever an adapter put before its name, is in one of the parts."""
    return any(f".{part}." in f".{name}." for part in parts)


def wrapper_caveats(base: Any, adapters: Collection[int], adapted: Sequence[str]) -> Iterator[Caveat]:
    """Say what of a wrapper is loaded and never run, or left out, and which adapters are on that by accident.

    ``adapters`` are the ids of parameters that adapters brought, ``adapted`` the names of their layers.
    """
    if not isinstance(base, PreTrainedModel):
        return
    kind, named, parts = type(base).__name__, _named(base.config), beside_text(base)
    kind = kind.removeprefix("FSDP")  # which fully_shard puts before it
    names = " and ".join(parts)
    if parts:
        own = (each for module in parts.values() for each in module.parameters() if id(each) not in adapters)
        size = size_text(sum(each.nbytes for each in own))
        message = f"Trained on text alone: {names} ({size}) of {kind} are in every figure, and are never run."
        yield Caveat(code="text-alone", message=message)
    elif named and named != kind:
        message = (
            f"config.json names {named}, {kind} is built: what else the checkpoint holds is in no figure."
        )
        yield Caveat(code="another-class", message=message)
    if beside := [name for name in adapted if is_beside(name, parts)]:
        pattern = "|".join(name.rpartition(".")[2] for name in parts)
        yield Caveat(
            code="adapters-beside-text",
            message=f"{len(beside)} adapted layers are in {names}, which text never runs: they take memory "
            f'and are not trained; keep them out with peft.exclude_modules = ".*({pattern}).*".',
        )
