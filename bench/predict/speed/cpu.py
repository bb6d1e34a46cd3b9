"""How long the operators of a step take on a CPU, by the card that was measured of it."""

from collections.abc import Sequence
from math import exp, log, log2, prod

import torch

from bench.predict.speed.kernels import Product, Time, Work, constants
from bench.predict.trace.calls import Call
from bench.records.environment import cpu_model
from bench.records.machine_card import CURVE_OF_ALL, MachineCard, MachineKey, TimedProduct

_ITEM_BYTES = {"float32": 4, "bfloat16": 2}
_LEFT = {"addmm": 1, "baddbmm": 1, "addmm_": 1}


def this_machine() -> MachineKey:
    """Return what a card of this process's CPU holds for."""
    return MachineKey(cpu=cpu_model() or "unknown", threads=torch.get_num_threads(), torch=torch.__version__)


def cpu_time(call: Call, work: Work, card: MachineCard) -> Time:
    """Return how long an operator computes on a CPU; its dispatch is not counted."""
    if not work.launches:
        return Time(0.0, computing=False)
    dtype = dtype_of(call)
    seconds, computing = 0.0, bool(work.flops)
    if work.product:
        seconds += _product_seconds(work.product, card.products[f"{dtype} {layout_of(call)}"])
        if work.kind == "product" and call.form.op.startswith("bitsandbytes"):
            weights = work.product.n * work.product.k * (0.5 + _ITEM_BYTES[dtype])
            work = Work("dequantise", weights, way="dequantise")
    elif work.attention:
        _kernel, backward, keys = work.attention
        *heads, length, width = call.shapes[backward][1]
        paired = Product(1, prod(heads), length * keys, width)
        seconds = _product_seconds(paired, card.products[f"{dtype} attention{' backward' * backward}"])
    if not (work.product or work.attention):
        seconds += _along(card.curves[_curve(call, work, dtype, card)], work.flops or work.nbytes)
    return Time(seconds, computing)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dtype_of(call: Call) -> str:
    """Return the dtype in which an operator computes, of those that are measured."""
    parts = (*call.form.outputs, *call.form.inputs)
    half = next((part.dtype.itemsize == 2 for part in parts if part.dtype.is_floating_point), False)  # noqa: PLR2004 - bytes
    return "bfloat16" if half else "float32"


def layout_of(call: Call) -> str:
    """Return which factors of a product lie transposed; bitsandbytes' second does."""
    if not call.form.op.startswith("aten::"):
        return "nt"
    left = _LEFT.get(call.form.op.removeprefix("aten::"), 0)
    first, second = (not part.dense for part in call.form.inputs[left : left + 2])
    return "tn" if first else "nt" if second else "nn"


def name_of(call: Call, work: Work, dtype: str) -> str:
    return f"{call.form.op.split('::')[-1]} {work.way} {dtype}"


def _curve(call: Call, work: Work, dtype: str, card: MachineCard) -> str:
    """Return the curve of an operator: its own, of one that computes alike, or of its class of kernels."""
    table = constants()["cpu"]
    op = call.form.op.split("::")[-1]
    like = next((one for one, others in table["like"].items() if op in others.split()), op)
    usual = table["usual"][work.kind]
    names = [f"{one} {way} {dtype}" for one in (op, like, usual) for way in (work.way, "vector", "scalar")]
    names.append(f"{usual} {work.way} float32")
    return next((name for name in names if name in card.curves), CURVE_OF_ALL)


def _along(curve: Sequence[tuple[float, float]], size: float) -> float:
    """Return the seconds at a size: between two that were measured by a power, beyond them in proportion."""
    if size <= curve[0][0] or size >= curve[-1][0]:
        nearest, seconds = curve[0] if size <= curve[0][0] else curve[-1]
        return seconds * size / nearest
    after = next(index for index, (at, _) in enumerate(curve) if at >= size)
    (low, fast), (high, slow) = curve[after - 1], curve[after]
    return fast * exp(log(slow / fast) * log(size / low) / log(high / low))


def _product_seconds(size: Product, measured: Sequence[TimedProduct]) -> float:
    """Return how long products take: at the rate of those measured, the nearest count most."""
    weights = rates = 0.0
    for *shape, seconds in measured:
        far = sum(log2(mine / its) ** 2 for mine, its in zip(size[1:], shape, strict=True))
        weight = 1 / (far + 0.1) ** 2
        weights += weight
        rates += weight * log(prod(shape) / seconds)
    return size.batch * size.m * size.n * size.k / exp(rates / weights)
