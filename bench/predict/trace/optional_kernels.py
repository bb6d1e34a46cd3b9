"""Which of several implementations transformers ran where the choice is by what is installed or asked for.

The library says so itself: hub_kernels.use_kernel_func_from_hub_with_fallback warns of each function that ran
as its reference in torch, and moe.ExpertsInterface is asked for the products of experts.
"""

import re
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from bench.records.predictions import KERNELS_NOT_TRACED
from bench.records.readings import Caveat
from bench.scenario.platform import Platform

_FELL_BACK = re.compile(r"`(\w+)` is falling back to .* because `([\w.-]+)` is not installed")
_heard: set[tuple[str, str]] = set()
_EXPERTS = "experts"


class _Listening:
    """transformers' logger, heard for functions that fell back: also for those it has warned of before."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)

    def warning_once(self, message: str, *args: Any) -> None:
        """Note a function and the package it would have come from."""
        if found := _FELL_BACK.search(message):
            _heard.add((found[2].replace("_", "-"), found[1]))
        else:
            self._logger.warning_once(message, *args)


def heard_implementations(platform: Platform) -> Iterator[Any]:
    """Yield what hears, for a card, which implementations are run; on a CPU there is one of each."""
    if platform.device == "cpu":
        return
    from transformers.integrations import hub_kernels, moe

    _heard.clear()
    asked = "get_interface" if hasattr(moe.ExpertsInterface, "get_interface") else "__getitem__"  # until 5.0
    interface = getattr(moe.ExpertsInterface, asked)

    def heard(self: Any, name: str, *default: Any) -> Any:
        _heard.add((_EXPERTS, name))
        return interface(self, name, *default)

    yield patch.object(hub_kernels, "logger", _Listening(hub_kernels.logger))
    yield patch.object(moe.ExpertsInterface, asked, heard)


def implementations_of() -> Iterator[Caveat]:
    """Yield which implementations ran in the last trace for a card, where there are others."""
    fell_back = sorted((package, name) for package, name in _heard if package != _EXPERTS)
    if fell_back:
        packages = " and ".join(dict.fromkeys(package for package, _ in fell_back))
        names = ", ".join(name for _, name in fell_back)
        message = (
            f"Traced as without {packages}: {names} ran as transformers' reference in torch. With {packages} "
            "installed a card runs their kernels, which keep fewer tensors by design and were not measured "
            "here; what does not fit without them is too close to call."
        )
        yield Caveat(code=KERNELS_NOT_TRACED, message=message)
    for name in sorted(name for package, name in _heard if package == _EXPERTS):
        message = (
            f"Products of experts were traced as transformers' {name}; another experts_implementation takes "
            "other memory."
        )
        yield Caveat(code="experts-implementation", message=message)
