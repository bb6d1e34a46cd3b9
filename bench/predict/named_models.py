"""The model that a user names for a fit, and what is known of its sizes without a network."""

import re
from contextlib import suppress
from pathlib import Path

from bench.errors import UsageError
from bench.io import parse_json, read_data
from bench.scenario.catalogue import (
    architecture,
    architecture_of,
    architecture_spelt,
    architecture_within,
    architectures,
)
from bench.scenario.types import ModelSpec

MOST_TOKENS = 131_072
MOST_RANK = 1024


def named_model(text: str) -> tuple[ModelSpec, str | None]:
    """Return the model that a user names, and what is assumed of it.

    It is a catalogued one, a folder with a config.json, a hub's, whose configuration is looked for as for a
    plan, or one whose name says which catalogued one it derives from.
    """
    known = architectures().get(text) or (None if "/" in text else architecture_spelt(text))
    if known is not None:
        return ModelSpec(name=known.name, random=known.name), None
    folder = Path(text)
    if (folder / "config.json").is_file():
        return ModelSpec(name=_safe_name(folder.resolve().name), path=text), None
    if folder.is_dir():
        raise UsageError(f"folder {text} has no config.json; give the folder of a transformers model")
    if text.startswith((".", "~")) or ("/" in text and not re.fullmatch(r"[^/]+/[^/]+", text)):
        raise UsageError(f"there is no folder {text}; check the path, or name a catalogued model or a hub's")
    name = _safe_name(text.rpartition("/")[2])
    if "/" in text:
        return ModelSpec(name=name, hub=text), None
    known = architecture_within(text) or architecture(text)  # which raises, naming the nearest
    return ModelSpec(name=name, random=known.name), known.assumed_for(text)


def _safe_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:80] or "model"


def limits_of(model: ModelSpec) -> tuple[int, int]:
    """Return the positions and the hidden size of a model, where they are known without a network."""
    known, file = architecture_of(model), None
    if model.path is not None:
        file = Path(model.path) / "config.json"
    elif model.hub is not None and known is None:
        from huggingface_hub import try_to_load_from_cache

        with suppress(ValueError):  # no name that the hub could have
            cached = try_to_load_from_cache(model.hub, "config.json")
            file = Path(cached) if isinstance(cached, str) else None
        known = architecture_within(model.hub) if file is None else None
    if known is not None:
        return min(known.max_positions, MOST_TOKENS), known.hidden_size
    config: dict[str, object] = {}
    if file is not None:
        try:
            read = parse_json(read_data(file))
        except (OSError, ValueError) as error:
            raise UsageError(f"{file} cannot be read as JSON ({error})") from None
        config = read if isinstance(read, dict) else {}
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    hidden = config.get("hidden_size") or config.get("n_embd")
    return (
        min(positions, MOST_TOKENS) if isinstance(positions, int) else MOST_TOKENS,
        hidden if isinstance(hidden, int) else MOST_RANK,
    )
