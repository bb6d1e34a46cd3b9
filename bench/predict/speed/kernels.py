"""What the kernels of an operator compute and move, and how long that takes on a card."""

from collections.abc import Sequence
from functools import cache
from math import ceil, prod
from typing import Any, NamedTuple

import torch

from bench.io import own_toml
from bench.metrics import MIB
from bench.predict.trace.calls import Call, Form, Part, Shape
from bench.records.predictions import KernelClass
from bench.scenario.catalogue import Card

Shaped = Sequence[tuple[Part, Shape]]
_HALF = (torch.float16, torch.bfloat16)


class Product(NamedTuple):
    """A batch of matrix products [m, k] by [k, n]."""

    batch: int
    m: int
    n: int
    k: int


class Work(NamedTuple):
    """What an operator's kernels do; ``way`` is how they reach memory."""

    kind: KernelClass
    nbytes: float = 0
    flops: float = 0
    launches: int = 1
    way: str = "vector"
    half: bool = True
    product: Product | None = None
    attention: tuple[str, bool, int] | None = None  # kernel, backward, keys
    rounds: int = 0  # in which a collective sends what it gathers or reduces
    gathered: float = 0  # bytes of that, whole


@cache
def constants() -> dict[str, Any]:
    return own_toml("bench.predict.speed", "constants.toml")


class Traffic(NamedTuple):
    """How often a kernel reads what it is given, and writes what it returns."""

    kind: KernelClass
    read: float = 1
    written: float = 1
    launches: int = 1
    way: str = "vector"
    read_wide: float = 0


@cache
def _traffic() -> dict[str, Traffic]:
    return {
        op: Traffic(**{key: value for key, value in entry.items() if key not in {"operators", "source"}})
        for entry in constants()["traffic"]
        for op in entry["operators"].split()
    }


_WIDE_ROW_BYTES = 16384
"""A row of more is not kept in shared memory between the passes over it."""


def work_of(call: Call) -> Work:
    form = call.form
    bare = form.op.split("::")[-1]
    inputs, outputs = call.shapes[: len(form.inputs)], call.shapes[len(form.inputs) :]
    known = _traffic().get(bare)
    if form.view or (known and known.kind == "none") or all(part.on_host for part, _ in call.shapes):
        return Work("none", launches=0)
    if bare in _PRODUCTS:
        return _product(bare, inputs, outputs)
    if "attention" in bare:
        return _attention(form, bare, inputs)
    if form.listed:
        return _over_lists(known, inputs)
    if form.op.startswith("bitsandbytes"):
        return _bitsandbytes(form, bare, inputs, outputs)
    between = form.op.startswith(_BETWEEN_GPUS)
    return _collective(bare, inputs, outputs) if between else _moved(known, inputs, outputs)


_PRODUCTS = {"mm": 0, "addmm": 1, "bmm": 0, "baddbmm": 1, "_grouped_mm": 0, "addmm_": 1}
"""Where among the arguments the first factor stands."""


def _product(bare: str, inputs: Shaped, outputs: Shaped) -> Work:
    (left, shape), (_, _) = inputs[_PRODUCTS[bare]], inputs[_PRODUCTS[bare] + 1]
    out = outputs[0][1]
    *batch, m, n = out
    size = Product(prod(batch), m, n, shape[-1])
    half = left.dtype in _HALF
    return Work(
        "product" if half else "fp32 product",
        nbytes=sum(_bytes(*each) for each in (*inputs, *outputs)),
        flops=2 * size.batch * size.m * size.n * size.k,
        half=half,
        product=size,
    )


_BETWEEN_GPUS = ("c10d::", "_c10d_functional::", "fsdp::all_gather_copy_in")
_ROUNDS = {"all_gather": 1, "allgather": 1, "reduce_scatter": 1, "all_reduce": 2, "allreduce": 2}
"""Of collectives, by what is in their names; to reduce is to scatter sums and to gather them."""


def _collective(bare: str, inputs: Shaped, outputs: Shaped) -> Work:
    """Return what a collective sends, which computes nothing; or the copy of a shard to be sent."""
    if bare == "all_gather_copy_in":
        return Work("copy and cast", 2 * _bytes(*outputs[0]))
    rounds = next((count for name, count in _ROUNDS.items() if name in bare), 0)
    whole = max((_bytes(*each) for each in (*inputs, *outputs)), default=0)
    return Work("none", launches=0, rounds=rounds, gathered=whole)


def _attention(form: Form, bare: str, inputs: Shaped) -> Work:
    backward = "backward" in bare
    (query, shape), (_, keys) = inputs[backward], inputs[backward + 1]
    batch, heads, length, width = shape
    key_length = keys[-2]
    flops = 4.0 * batch * heads * length * key_length * width
    kernel = "flash" if "flash" in bare else "efficient"
    causal = any(form.flags)
    if causal:
        flops /= 2
    if backward:
        flops *= 2.5
    return Work(
        "attention",
        nbytes=(2 if backward else 1) * 2 * (_bytes(query, shape) + _bytes(query, keys)),
        flops=flops,
        launches=3 if backward else 1,
        half=query.dtype in _HALF,
        attention=(kernel, backward, key_length),
    )


def _over_lists(known: Traffic | None, inputs: Shaped) -> Work:
    """Return the work on lists, of which ``known`` says how many are read and written."""
    lists = [(part, shape) for part, shape in inputs if len(shape) == 2]  # noqa: PLR2004 - count and elements
    (part, (count, elements)) = max(lists, key=lambda one: one[1][1])
    known = known or Traffic("optimizer", read=len(lists))
    moved = elements * part.dtype.itemsize * (known.read + known.written)
    return Work("optimizer", moved, launches=ceil(count / constants()["memory"]["tensors_a_launch"]))


def _bitsandbytes(form: Form, bare: str, inputs: Shaped, outputs: Shaped) -> Work:
    moved = sum(_bytes(*each) for each in (*inputs, *outputs))
    if bare.startswith(("gemm_4bit", "gemv_4bit")):
        shape, out = inputs[0][1], outputs[0][1]
        size = Product(1, prod(shape[:-1]), out[-1], shape[-1])
        return Work("product", moved, 2 * prod(size), product=size, launches=2, half=True)
    if "dequantize" in bare:
        return Work("dequantise", moved, way="dequantise")
    if form.phase == "optimizer_step":
        return Work("optimizer", moved)
    return Work("dequantise", moved)


def _moved(known: Traffic | None, inputs: Shaped, outputs: Shaped) -> Work:
    """Return the work of a kernel that bytes decide; an elementwise one where the table has no other."""
    read, written = (sum(_bytes(*each) for each in parts) for parts in (inputs, outputs))
    if known is None:
        way = "vector" if _alike([*inputs, *outputs]) else "scalar"
        return Work("elementwise", read + written, way=way)
    part, shape = inputs[0] if inputs else outputs[0]
    wide = known.read_wide and shape and shape[-1] * part.dtype.itemsize > _WIDE_ROW_BYTES
    moved = read * (known.read_wide if wide else known.read) + written * known.written
    return Work(known.kind, moved, launches=known.launches, way=known.way)


def _alike(parts: Shaped) -> bool:
    """Tell whether an elementwise kernel can load several elements at once: dense, of one shape and dtype."""
    large = [(part, shape) for part, shape in parts if prod(shape) > 1]
    return len({(part.dtype, shape) for part, shape in large}) <= 1 and all(part.dense for part, _ in large)


def _bytes(part: Part, shape: Shape) -> int:
    """Return the bytes that are there: dimensions that repeat an element count once."""
    return part.dtype.itemsize * prod(
        size for size, spread in zip(shape, part.spread, strict=True) if not spread
    )


_HOPPER = 9
"""Its full peak takes instructions of its own, which the kernels of attention do not use."""


class Rates(NamedTuple):
    """What a card does in a second; ``cycles`` are those of all multiprocessors."""

    half_flops: float
    fp32_flops: float
    bandwidth: float
    cycles: float
    multiprocessors: int
    cache_bytes: float
    attention_flops: float


def rates_of(card: Card) -> Rates | None:
    """Return a card's rates; None where the catalogue lacks what they follow from."""
    known, peak = card.speed, card.peak_bf16_flops
    if known is None or peak is None or card.bandwidth_bytes_per_s is None:
        return None
    reached = constants()["attention"]["hopper"] if card.capability[0] == _HOPPER else 1
    return Rates(
        half_flops=known.product_share * peak,
        fp32_flops=constants()["product"]["fp32_share"] * known.fp32_tflops * 1e12,
        bandwidth=card.bandwidth_bytes_per_s,
        cycles=known.multiprocessors * known.clock_mhz * 1e6,
        multiprocessors=known.multiprocessors,
        cache_bytes=known.l2_mib * MIB,
        attention_flops=reached * peak,
    )


class Time(NamedTuple):
    """How long kernels run, and whether computing or moving bytes takes so long."""

    seconds: float
    computing: bool


def time_of(work: Work, rates: Rates) -> Time:
    if not work.launches:
        return Time(0.0, computing=False)
    table = constants()
    moving = work.nbytes / _bandwidth(work, rates)
    computing = 0.0
    if work.product and min(work.product.m, work.product.n) > 1:  # else it is a vector, and bytes decide
        computing = _product_seconds(work.product, rates, half=work.half)
    elif work.attention:
        kernel, backward, keys = work.attention
        share = table["attention"][kernel][backward] * keys / (keys + table["attention"]["half_speed"])
        cost = 1 if work.half else table["attention"]["fp32_cost"]
        computing = cost * work.flops / (share * rates.attention_flops)
    launching = work.launches * table["memory"]["launch_us"] * 1e-6
    return Time(max(moving, computing) + launching, computing > moving)


def least_seconds(work: Work, card: Card) -> float:
    """Return what the data sheet allows an operator's kernels: the peak of their dtype, or the bandwidth.

    Attention in fp32 runs in TF32, at half the peak of bf16. No launch is counted, and no cache.
    """
    peak, known = card.peak_bf16_flops or 1, card.speed
    if not work.half and known:
        peak = peak / 2 if work.attention else known.fp32_tflops * 1e12
    return max(work.flops / peak, work.nbytes / (card.bandwidth_bytes_per_s or 1)) if work.launches else 0.0


def _bandwidth(work: Work, rates: Rates) -> float:
    """Return the bytes a second that an operator's kernels move."""
    table = constants()["memory"]
    full: float = table["vector"] * rates.bandwidth
    if work.nbytes < table["cached_part"] * rates.cache_bytes:
        full = max(full, table["cached_bytes_per_cycle"] * rates.cycles)
    if work.way == "dequantise":
        full *= table["dequantise"] / table["vector"]
    return min(full, table["scalar_bytes_per_cycle"] * rates.cycles) if work.way == "scalar" else full


def _product_seconds(size: Product, rates: Rates, *, half: bool) -> float:
    """Return how long matrix products compute: in waves of tiles over all multiprocessors, the best way."""
    table = constants()["product"]
    peak = rates.half_flops if half else rates.fp32_flops
    loading = table["operand_cost"] * (1 if half else rates.fp32_flops / rates.half_flops)
    unit = 1 + loading * (1 / 256 + 1 / 128)
    best = float("inf")
    for rows, columns in table["tiles" if half else "fp32_tiles"]:
        cost = (1 + loading * (1 / rows + 1 / columns)) / unit
        tiles = size.batch * ceil(size.m / rows) * ceil(size.n / columns)
        splits = 1
        while splits <= table["most_splits"] and (splits == 1 or size.k / splits >= 2 * table["edge"]):
            waves = ceil(tiles * splits / rates.multiprocessors)
            depth = size.k / splits + table["edge"]
            best = min(best, waves * rates.multiprocessors * 2 * rows * columns * depth * cost / peak)
            splits *= 2
    return best
