"""Measures this machine's CPU by microbenchmarks: products, kernels that move bytes, attention, dispatch."""

import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from bench.predict.speed.cpu import dtype_name, name_of, this_machine
from bench.predict.speed.kernels import work_of
from bench.predict.speed.predict import host_seconds
from bench.predict.trace.calls import Added, At, Call, Recorder
from bench.records.machine_card import MachineCard, TimedProduct
from bench.training.jobs import quiet_libraries

Run = Callable[[], Any]
_DTYPES = (torch.float32, torch.bfloat16)
_ELEMENTS = (1 << 14, 1 << 18, 1 << 21, 1 << 24)
"""In the first cache, the last, about its size, and far beyond."""
_TINY = 1 << 9
_WIDTH = 512
_VOCABULARY = 32768
_COLD_BYTES = 1 << 25
"""What kernels read is spread over so much, since in training others ran after it was written."""
_MOST_COPIES = 32
_REPEATS = 5
_LEAST_S = 0.004
_WIDE, _WIDER, _MANY = 640, 1792, 16000
_PRODUCTS = sorted(
    [
        *((m, n, k) for m in (64, 512) for n, k in ((_WIDE, _WIDE), (_WIDER, _WIDE), (_WIDE, _WIDER))),
        *((m, n, k) for m in (64, 512) for n, k in ((_WIDE, 8), (8, _WIDE), (_WIDER, 64), (64, _WIDER))),
        *(
            (m, n, k)
            for k in (64, 512)
            for m, n in ((_WIDER, _WIDE), (_WIDE, _WIDER), (8, _WIDE), (_WIDE, 8))
        ),
        *((64, _MANY, _WIDE), (64, _WIDE, _MANY), (_MANY, _WIDE, 64)),
    ],
    key=prod,
)
"""Tokens by widths, a rank or a vocabulary for one; and of gradients, whose depth is tokens.

No width is a power of two: rows so far apart share few lines of a cache, which slows some kernels down.
"""
_ATTENDED = [(heads, length, 64) for heads in (8, 32) for length in (128, 256, 512)]
"""Heads of all sequences, tokens, width."""
_LONGEST_S = 0.4
"""Of a product; larger ones are as fast as those of their shape."""


class _Noting(TorchDispatchMode):
    """Notes calls as a trace does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder, self.phase = Recorder(Added(0, 1)), "forward"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        at = At(0, 0, self.phase, "", -1, lambda _one: 1, lambda _one: None)
        self.recorder.note(func, (*args, *(kwargs or {}).values()), result, at)
        return result

    @property
    def calls(self) -> list[Call]:
        return [*self.recorder.calls[0].distinct()]


class _Clock:
    """Times runs, and keeps how far repeats differed."""

    def __init__(self) -> None:
        self.spreads: list[float] = []

    def seconds(self, run: Run) -> float:
        """Return the least of repeats, each long enough for the clock: what else runs only adds to it."""
        started = time.perf_counter()
        run()
        first = time.perf_counter() - started
        often = max(1, round(_LEAST_S / max(first, 1e-6)))
        found = [self._mean(run, often) for _ in range(2 if first > _LONGEST_S / 4 else _REPEATS)]
        least = min(found)
        self.spreads.append(statistics.median(found) / least - 1)
        return least

    @staticmethod
    def _mean(run: Run, often: int) -> float:
        started = time.perf_counter()
        for _ in range(often):
            run()
        return (time.perf_counter() - started) / often


def measure() -> MachineCard:
    """Measure for about a minute and return the card; libraries say nothing meanwhile."""
    with warnings.catch_warnings():
        quiet_libraries()
        warnings.simplefilter("ignore")
        return _measured()


def _measured() -> MachineCard:
    clock = _Clock()
    products = {
        f"{dtype_name(dtype)} {layout}": tuple(_products(clock, dtype, layout))
        for dtype in _DTYPES
        for layout in ("nn", "nt", "tn")
    }
    for dtype in _DTYPES:
        products |= _attention(clock, dtype)
    curves = dict(curve for dtype in _DTYPES for curve in _curves(clock, dtype))
    host = _host(clock)
    spread = statistics.median(clock.spreads)
    peak = max(2 * m * n * k / seconds for several in products.values() for m, n, k, seconds in several)
    return MachineCard(
        key=this_machine(), products=products, curves=curves, host=host, spread=spread, peak_flops=peak
    )


def _products(clock: _Clock, dtype: torch.dtype, layout: str) -> Iterator[TimedProduct]:
    rate = float("inf")
    for m, n, k in _PRODUCTS:
        if m * n * k / rate > _LONGEST_S:
            continue
        left, right = torch.ones((m, k), dtype=dtype), torch.ones((k, n), dtype=dtype)
        left = left.t().contiguous().t() if layout == "tn" else left
        right = right.t().contiguous().t() if layout == "nt" else right
        seconds = clock.seconds(partial(_product, _copies(left), _copies(right)))
        rate = m * n * k / seconds
        yield m, n, k, seconds


def _product(lefts: Iterator[Tensor], rights: Iterator[Tensor]) -> Tensor:
    return next(lefts) @ next(rights)


def _copies(tensor: Tensor) -> Iterator[Tensor]:
    """Return copies in turn, each laid out alike."""
    count = min(_MOST_COPIES, max(1, _COLD_BYTES // tensor.nbytes))
    return cycle([tensor.clone() for _ in range(count)])


def _attention(clock: _Clock, dtype: torch.dtype) -> dict[str, tuple[TimedProduct, ...]]:
    """Return the times of causal attention and its backward pass, as products of heads, pairs and width."""
    forward, backward = list[TimedProduct](), list[TimedProduct]()
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    for heads, length, width in _ATTENDED:
        one = torch.ones((heads // 8, length, 8, width), dtype=dtype).transpose(1, 2)
        made = attend(one, one, one, is_causal=True)
        taken = clock.seconds(partial(attend, one, one, one, is_causal=True))
        forward.append((heads, length * length, width, taken))
        taken = clock.seconds(partial(gradients, one, one, one, one, *made, 0.0, is_causal=True))
        backward.append((heads, length * length, width, taken))
    name = dtype_name(dtype)
    return {f"{name} attention": tuple(forward), f"{name} attention backward": tuple(backward)}


def _curves(clock: _Clock, dtype: torch.dtype) -> Iterator[tuple[str, tuple[tuple[float, float], ...]]]:
    """Yield operators by name with their times by size, less what each takes where there is nothing to do."""
    found = defaultdict[str, list[tuple[float, float]]](list)
    dispatch = [clock.seconds(run) for run in _samples(dtype, _TINY)]
    for elements in _ELEMENTS:
        with torch.device("meta"):
            sizes = [_size_of(run, dtype) for run in _samples(dtype, elements)]
        copies = min(_MOST_COPIES, max(1, _COLD_BYTES // (6 * dtype.itemsize * elements)))
        several = zip(*(_samples(dtype, elements) for _ in range(copies)), strict=True)
        for (name, size), runs, least in zip(sizes, several, dispatch, strict=True):
            turns = cycle(runs)
            seconds = clock.seconds(lambda turns=turns: next(turns)())  # type: ignore[misc]
            found[name].append((size, max(seconds - least, seconds / 3)))
    yield from ((name, tuple(points)) for name, points in found.items())


def _size_of(run: Run, dtype: torch.dtype) -> tuple[str, float]:
    """Return how the curve of an operator is called, and what it moves or computes."""
    with _Noting() as noting:
        run()
    call = max(noting.calls, key=lambda one: work_of(one).nbytes)
    work = work_of(call)
    return name_of(call, work, dtype_name(dtype)), float(work.flops or work.nbytes)


def _samples(dtype: torch.dtype, elements: int) -> list[Run]:
    """Return operators on so many elements, each of which others are like."""
    import bitsandbytes  # noqa: F401 - has operators of its own

    aten, rows = torch.ops.aten, elements // _WIDTH
    one, other, third = (torch.ones((rows, _WIDTH), dtype=dtype) for _ in range(3))
    column, wide = one[:, :1].clone(), one.view(max(1, elements // _VOCABULARY), -1)
    elsewhere = one.to(next(each for each in _DTYPES if each != dtype))
    packed, scales = torch.zeros((elements // 2, 1), dtype=torch.uint8), torch.ones(elements // 64)
    ids, table = torch.arange(rows), torch.ones((rows, _WIDTH), dtype=dtype)
    steps = [torch.ones(())]
    rates: Any = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8}
    rates |= {"amsgrad": False, "maximize": False}
    return [
        lambda: one * other,
        lambda: one * column,
        lambda: functional.silu(one),
        lambda: torch.native_dropout(one, 0.1, train=True),
        lambda: one.mean(-1, keepdim=True),
        lambda: one.view(-1, 8, _WIDTH // 8).transpose(0, 1).contiguous(),
        lambda: elsewhere.to(dtype),
        lambda: functional.log_softmax(wide, -1),
        lambda: aten._log_softmax_backward_data(wide, wide, -1, dtype),
        lambda: functional.embedding(ids, table),
        lambda: aten.embedding_dense_backward(one, ids, rows, -1, scale_grad_by_freq=False),
        lambda: torch.zeros_like(one),
        lambda: torch._foreach_norm([one]),
        lambda: torch._foreach_mul_([other], column[0, 0]),
        lambda: torch._fused_adamw_([table], [one], [other], [third], [], steps, **rates),
        lambda: torch.ops.bitsandbytes.dequantize_4bit(packed, scales, 64, "nf4", (rows, _WIDTH), dtype),
    ]


def _host(clock: _Clock) -> float:
    """Return how much longer than a usual host this one takes to dispatch, by a tiny adapted model."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 32}
    base = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, **sizes))
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    ids = torch.zeros((1, 4), dtype=torch.long)

    def forward() -> Tensor:
        loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
        return loss

    with _Noting() as noting:
        loss = forward()
        noting.phase = "backward"
        loss.backward()
    usual: float = sum(host_seconds(call) * call.times for call in noting.calls)
    return clock.seconds(lambda: forward().backward()) / usual
