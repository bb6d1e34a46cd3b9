"""The settings of CUDA's caching allocator, read as torch reads PYTORCH_CUDA_ALLOC_CONF.

Rules and bounds: c10/core/AllocatorConfig.cpp and c10/cuda/CUDAAllocatorConfig.cpp of torch 2.13; torch
2.6 knows neither large_segment_size_mb nor per_process_memory_fraction.
"""

import re
from collections.abc import Callable
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
        tokens = _Tokens(text)
        found: dict[str, object] = {}
        while tokens.left:
            key = tokens.next()
            tokens.expect(":")
            if key in _READERS:
                field, read = _READERS[key]
                found[field] = read(tokens)
            elif key == "backend":
                if (backend := tokens.next()) != "native":
                    what = f"backend:{backend} is not modelled; only torch's own allocator (native) is."
                    raise tokens.wrong(what)
            elif key in _WITHOUT_EFFECT:
                tokens.next()
            else:
                hint = perhaps(key, [*_READERS, "backend", *_WITHOUT_EFFECT])
                raise tokens.wrong(f"{key} is not a key that torch knows. {hint}".rstrip())
            if tokens.left:
                tokens.expect(",")
        settings = cls(**found)  # type: ignore[arg-type]  # each reader gives its field's type
        for key in ("max_split_size_mb", "max_non_split_rounding_mb"):
            value = getattr(settings, _READERS[key][0])
            if value is not None and value < settings.large_segment_bytes:
                raise tokens.wrong(f"{key} must be at least {settings.large_segment_bytes // MIB}.")
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
        if size_bytes <= _MINIMUM_BYTES:
            return _MINIMUM_BYTES
        interval = min(max(size_bytes.bit_length() - 1 - 20, 0), _INTERVALS - 1)
        divisions = self.roundup_power2_divisions[interval]
        step = _MINIMUM_BYTES
        if divisions > 1 and size_bytes > _MINIMUM_BYTES * divisions:
            step = (1 << (size_bytes.bit_length() - 1)) // divisions
        return -(-size_bytes // step) * step


_MINIMUM_BYTES = 512  # kMinBlockSize
_DEFAULTS = {field.name: field.default for field in fields(AllocatorSettings)}


class _Tokens:
    """The text cut at ``, : [ ]``, white space dropped, as torch's ConfigTokenizer cuts it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._tokens: list[str] = re.findall(r"[,:\[\]]|[^,:\[\]]+", re.sub(r"\s", "", text))
        self._at = 0

    @property
    def left(self) -> bool:
        return self._at < len(self._tokens)

    @property
    def ahead(self) -> str:
        return self._tokens[self._at] if self.left else "its end"

    def next(self) -> str:
        if not self.left or self.ahead in ",:]":
            raise self.wrong(f"a key or value is missing before {self.ahead}.")
        self._at += 1
        return self._tokens[self._at - 1]

    def expect(self, token: str) -> None:
        if self.ahead != token:
            raise self.wrong(f'"{token}" is missing before {self.ahead}.')
        self._at += 1

    def wrong(self, problem: str) -> UsageError:
        return UsageError(
            f'The allocator settings "{self.text}" cannot be used: {problem} '
            "See PYTORCH_CUDA_ALLOC_CONF in torch's notes on CUDA."
        )

    def whole_number(self) -> int:
        token = self.next()
        if not token.isascii() or not token.isdigit():
            raise self.wrong(f"{token} is not a whole number.")
        return int(token)

    def mebibytes(self) -> int:
        return self.whole_number() * MIB


def _flag(tokens: _Tokens) -> bool:
    word = tokens.next()
    if word not in {"True", "False"}:
        raise tokens.wrong(f"{word} is neither True nor False.")
    return word == "True"


def _large_segment(tokens: _Tokens) -> int:
    size = tokens.mebibytes()
    if size <= LARGE_REQUEST_BYTES:
        raise tokens.wrong(f"large_segment_size_mb must be more than {LARGE_REQUEST_BYTES // MIB}.")
    return size


def _fraction(tokens: _Tokens) -> float:
    token = tokens.next()
    try:
        value = float(token)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise tokens.wrong(f"{token} is not a fraction between 0 and 1.")
    return value


def _threshold(tokens: _Tokens) -> float:
    value = _fraction(tokens)
    if value == 1:
        raise tokens.wrong("garbage_collection_threshold must be below 1.")
    return value


def _divisions(tokens: _Tokens) -> tuple[int, ...]:
    """Read ``8`` or ``[256:1,512:2,>:4]``; sizes in MiB, each a power of two.

    Sizes below the first take its divisions, and sizes that are not named keep none, as in torch 2.13;
    torch 2.6 let ``>`` overwrite the last named size as well.
    """
    if tokens.ahead != "[":
        return (_power_of_two(tokens, zero=False),) * _INTERVALS
    tokens.expect("[")
    found = [0] * _INTERVALS
    last = None
    while tokens.ahead != "]":
        if tokens.ahead == ">":
            tokens.next()
            tokens.expect(":")
            after = 0 if last is None else last
            found[after + 1 :] = [_power_of_two(tokens, zero=True)] * (_INTERVALS - after - 1)
        else:
            index = min(_power_of_two(tokens, zero=False).bit_length() - 1, _INTERVALS - 1)
            tokens.expect(":")
            value = _power_of_two(tokens, zero=True)
            start = 0 if last is None else index
            found[start : index + 1] = [value] * (index + 1 - start)
            last = index
        if tokens.ahead != "]":
            tokens.expect(",")
    tokens.expect("]")
    return tuple(found)


def _power_of_two(tokens: _Tokens, *, zero: bool) -> int:
    value = tokens.whole_number()
    if value & (value - 1) or not (value or zero):
        raise tokens.wrong(f"{value} is not a power of two.")
    return value


def _shown(field: str, value: object) -> str:
    if field == "roundup_power2_divisions" and isinstance(value, tuple):
        named = ",".join(f"{1 << index}:{divisions}" for index, divisions in enumerate(value))
        return str(value[0]) if len(set(value)) == 1 else f"[{named}]"
    return str(value // MIB) if field.endswith("_bytes") and isinstance(value, int) else str(value)


_READERS: dict[str, tuple[str, Callable[[_Tokens], object]]] = {
    "expandable_segments": ("expandable_segments", _flag),
    "large_segment_size_mb": ("large_segment_bytes", _large_segment),
    "max_split_size_mb": ("max_split_bytes", _Tokens.mebibytes),
    "max_non_split_rounding_mb": ("max_non_split_rounding_bytes", _Tokens.mebibytes),
    "roundup_power2_divisions": ("roundup_power2_divisions", _divisions),
    "garbage_collection_threshold": ("garbage_collection_threshold", _threshold),
    "per_process_memory_fraction": ("per_process_memory_fraction", _fraction),
}
"""Key → the field it fills and how its value is read; also the order in which they are shown."""
