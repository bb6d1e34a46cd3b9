"""What a catalogued architecture makes absurd, refused before anything is allocated."""

from bench.spec.catalog import architecture_of
from bench.spec.types import Cell, LoraMethod, QloraMethod


def absurdities(cell: Cell) -> list[tuple[str, str, str]]:
    """Return (part, field, what is wrong) for each; none where the model is not in the catalogue.

    A rank above the hidden size is no longer low; a model has positions for so many tokens and no more.
    """
    known = architecture_of(cell.model)
    if known is None:
        return []
    found = []
    method, length = cell.method, cell.training.sequence_length
    if isinstance(method, LoraMethod | QloraMethod) and method.rank > known.hidden_size:
        message = f"{method.rank} is above the hidden size of {known.name}, {known.hidden_size}; lower it"
        found.append(("method", "rank", message))
    if length > known.max_positions:
        message = f"{length} is beyond the {known.max_positions} positions of {known.name}; shorten it"
        found.append(("training", "sequence_length", message))
    return found
