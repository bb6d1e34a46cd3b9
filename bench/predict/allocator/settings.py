"""The settings of CUDA's caching allocator, read as torch reads PYTORCH_CUDA_ALLOC_CONF.

Rules and bounds: c10/core/AllocatorConfig.cpp and c10/cuda/CUDAAllocatorConfig.cpp of torch 2.13; torch
2.6 knows neither large_segment_size_mb nor per_process_memory_fraction.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Self

from bench.errors import UsageError
from bench.metrics import MIB
from bench.scenario.diagnostics import perhaps

LARGE_REQUEST_BYTES = 10 * MIB  # kMinLargeAlloc: from here on a segment is as large as its request
_INTERVALS = 16  # powers of two from 1 MiB to 32 GiB; larger sizes share the last
_WITHOUT_EFFECT = frozenset(
    {
        "graph_capture_record_stream_reuse",
        "pinned_free_catch_all",
        "pinned_max_cached_size_mb",
        "pinned_max_round_threshold_mb",
        "pinned_num_register_threads",
        "pinned_reserve_segment_size_mb",
        "pinned_use_background_threads",
        "pinned_use_cuda_host_register",
        "release_lock_on_cudamalloc",
        "throw_on_cudamalloc_oom",
    }
)
"""Keys that concern host memory, locks, CUDA graphs or the moment of an error: read and dropped."""


@dataclass(frozen=True, kw_only=True)
class AllocatorSettings:
    """What PYTORCH_CUDA_ALLOC_CONF (or PYTORCH_ALLOC_CONF) says of device memory; defaults are torch's."""

    expandable_segments: bool = False
    large_segment_bytes: int = 20 * MIB
    max_split_bytes: int | None = None
    max_non_split_rounding_bytes: int | None = None
    roundup_power2_divisions: tuple[int, ...] = (0,) * _INTERVALS
    garbage_collection_threshold: float = 0.0
    per_process_memory_fraction: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the variable's text.

        Raises ``UsageError`` on an unknown key, a value torch would refuse, and a backend that is not
        modelled. Keys without effect on device memory are accepted and dropped.
        """
        bare = re.sub(r"\s", "", text).removesuffix(",")
        try:
            # Commas within brackets part sizes, not settings.
            items = re.split(r",(?![^\[]*\])", bare) if bare else []
            settings = cls(**dict(filter(None, map(_read, items))))  # type: ignore[arg-type]  # of its field's type
            _require_as_large_as_segments(settings)
        except ValueError as error:
            raise UsageError(
                f'The allocator settings "{text}" cannot be used: {error} '
                "See PYTORCH_CUDA_ALLOC_CONF in torch's notes on CUDA."
            ) from None
        return settings

    @property
    def non_split_rounding_bytes(self) -> int:
        """How much larger than its oversize request a block may be and still serve it."""
        return self.max_non_split_rounding_bytes or self.large_segment_bytes

    def __str__(self) -> str:
        """Return text that parses to these settings; empty for torch's defaults."""
        values = {key: (field, getattr(self, field)) for key, (field, _) in _READERS.items()}
        changed = {key: told for key, told in values.items() if told[1] != _DEFAULTS[told[0]]}
        return ",".join(f"{key}:{_shown(*told)}" for key, told in changed.items())

    def rounded(self, size_bytes: int) -> int:
        """Return the block size for a request (DeviceCachingAllocator::round_size), in bytes.

        >>> AllocatorSettings().rounded(513)
        1024
        """
        if size_bytes <= MINIMUM_BYTES:
            return MINIMUM_BYTES
        interval = min(max(size_bytes.bit_length() - 1 - 20, 0), _INTERVALS - 1)
        divisions = self.roundup_power2_divisions[interval]
        step = MINIMUM_BYTES
        if divisions > 1 and size_bytes > MINIMUM_BYTES * divisions:
            step = (1 << (size_bytes.bit_length() - 1)) // divisions
        return -(-size_bytes // step) * step


MINIMUM_BYTES = 512  # kMinBlockSize
_DEFAULTS = {field.name: field.default for field in fields(AllocatorSettings)}


def _read(item: str) -> tuple[str, object] | None:
    """Return the field and value of one setting; None where it has no effect. Raises ``ValueError``."""
    key, _, value = item.partition(":")
    if key not in {*_READERS, *_WITHOUT_EFFECT, "backend"}:
        hint = perhaps(key, [*_READERS, "backend", *_WITHOUT_EFFECT])
        raise ValueError(f'"{key}" is not a key that torch knows. {hint}'.rstrip())
    if not value:
        raise ValueError(f"{key} has no value.")
    if key == "backend" and value != "native":
        raise ValueError(f"backend:{value} is not modelled; only torch's own allocator (native) is.")
    if key not in _READERS:
        return None
    field, read = _READERS[key]
    return field, read(value)


def _require_as_large_as_segments(settings: AllocatorSettings) -> None:
    for key in ("max_split_size_mb", "max_non_split_rounding_mb"):
        value = getattr(settings, _READERS[key][0])
        if value is not None and value < settings.large_segment_bytes:
            raise ValueError(f"{key} must be at least {settings.large_segment_bytes // MIB}.")


def _whole_number(value: str) -> int:
    if not value.isascii() or not value.isdigit():
        raise ValueError(f"{value} is not a whole number.")
    return int(value)


def _mebibytes(value: str) -> int:
    return _whole_number(value) * MIB


def _flag(value: str) -> bool:
    if value not in {"True", "False"}:
        raise ValueError(f"{value} is neither True nor False.")
    return value == "True"


def _large_segment(value: str) -> int:
    size = _mebibytes(value)
    if size <= LARGE_REQUEST_BYTES:
        raise ValueError(f"large_segment_size_mb must be more than {LARGE_REQUEST_BYTES // MIB}.")
    return size


def _fraction(value: str) -> float:
    with suppress(ValueError):
        if 0 < float(value) <= 1:
            return float(value)
    raise ValueError(f"{value} is not a fraction between 0 and 1.")


def _threshold(value: str) -> float:
    if _fraction(value) == 1:
        raise ValueError("garbage_collection_threshold must be below 1.")
    return _fraction(value)


def _divisions(value: str) -> tuple[int, ...]:
    """Read ``8`` or ``[256:1,512:2,>:4]``; sizes in MiB, each a power of two.

    Sizes below the first take its divisions, and sizes that are not named keep none, as in torch 2.13;
    torch 2.6 let ``>`` overwrite the last named size as well.
    """
    if not value.startswith("["):
        return (_power_of_two(value, zero=False),) * _INTERVALS
    if not value.endswith("]"):
        raise ValueError(f'"]" is missing after {value}.')
    found, last = [0] * _INTERVALS, None
    for size, _, divisions in (item.partition(":") for item in value[1:-1].split(",") if item):
        if size == ">":
            start, end = 1 + (last or 0), _INTERVALS
        else:
            first = last is None
            last = min(_power_of_two(size, zero=False).bit_length(), _INTERVALS) - 1
            start, end = 0 if first else last, last + 1
        found[start:end] = [_power_of_two(divisions, zero=True)] * (end - start)
    return tuple(found)


def _power_of_two(text: str, *, zero: bool) -> int:
    value = _whole_number(text)
    if value & (value - 1) or not (value or zero):
        raise ValueError(f"{value} is not a power of two.")
    return value


def _shown(field: str, value: object) -> str:
    if field == "roundup_power2_divisions" and isinstance(value, tuple):
        named = ",".join(f"{1 << index}:{divisions}" for index, divisions in enumerate(value))
        return str(value[0]) if len(set(value)) == 1 else f"[{named}]"
    return str(value // MIB) if field.endswith("_bytes") and isinstance(value, int) else str(value)


_READERS: dict[str, tuple[str, Callable[[str], object]]] = {
    "expandable_segments": ("expandable_segments", _flag),
    "large_segment_size_mb": ("large_segment_bytes", _large_segment),
    "max_split_size_mb": ("max_split_bytes", _mebibytes),
    "max_non_split_rounding_mb": ("max_non_split_rounding_bytes", _mebibytes),
    "roundup_power2_divisions": ("roundup_power2_divisions", _divisions),
    "garbage_collection_threshold": ("garbage_collection_threshold", _threshold),
    "per_process_memory_fraction": ("per_process_memory_fraction", _fraction),
}
"""Key → the field it fills and how its value is read; also the order in which they are shown."""
