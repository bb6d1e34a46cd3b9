"""Storages under several ranks: a DTensor's own part, storages resized in place, what collectives use."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any
from unittest.mock import patch

import torch

_IN_FLIGHT = "AsyncCollectiveTensor"
COLLECTIVES = frozenset({"c10d", "_c10d_functional", "fsdp"})
"""Namespaces of operators that move what others compute."""


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return what of a DTensor lies here, or what a collective is to fill; any other tensor as it is.

    A DTensor itself tells the size of the whole.
    """
    local: Any = getattr(tensor, "_local_tensor", tensor)
    found: torch.Tensor = local.elem if type(local).__name__ == _IN_FLIGHT else local
    return found


def desugars(kinds: Iterable[type]) -> bool:
    """Tell whether an operator will come back as operators on plain tensors, among which its results are."""
    return any(hasattr(kind, "_local_tensor") or kind.__name__ == _IN_FLIGHT for kind in kinds)


@cache
def is_collective(operator: Any) -> bool:
    """Tell whether an operator gathers or reduces over ranks, or lays out what is to be."""
    return operator.namespace in COLLECTIVES


def collected(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a collective on meta tensors, for which torch's kernels copy what real ones hand on."""
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    match operator.name().partition("::")[2]:
        case "_wrap_tensor_autograd":
            return AsyncCollectiveTensor(args[0])
        case "wait_tensor":
            return args[0]
    return operator(*args, **kwargs)


class Resizes:
    """Tells of storages resized in place, as FSDP2 frees gathered weights and makes them anew."""

    def __init__(self, tell: Callable[[torch.UntypedStorage], None]) -> None:
        """Begin to listen; no operator shows it."""
        resize = torch.UntypedStorage.resize_

        def resized(storage: Any, size: int) -> Any:
            result = resize(storage, size)
            tell(storage)
            return result

        self._patch = patch.object(torch.UntypedStorage, "resize_", resized)
        self._patch.start()

    def remove(self) -> None:
        self._patch.stop()
