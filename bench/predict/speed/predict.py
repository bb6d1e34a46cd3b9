"""How fast a traced step runs on a card: kernels beside the host that dispatches them, with a band."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.predict.speed.cpu import cpu_time
from bench.predict.speed.kernels import Time, Work, constants, least_seconds, rates_of, time_of, work_of
from bench.predict.trace.calls import Call, Calls
from bench.predict.trace.stream import Stream
from bench.records.machine_card import THIS_CPU, MachineCard
from bench.records.predictions import KERNELS_NOT_TRACED, Dear, KernelClass, Limit, Speed
from bench.records.readings import Caveat
from bench.scenario.catalogue import Card
from bench.scenario.cell import Cell
from bench.scenario.types import PeftMethod

_DEAREST = 5
_UNTIMED = ("_linalg_", "linalg_inv", "linalg_qr", "linalg_h", "linalg_l", "cholesky", "grouped_mm", "int8")
"""In names of operators whose kernels have no time here."""
_UNTIMED_LAYERS = ("experts", "mamba", "ssm", "linear_conv")
"""In names of a configuration's numbers: layers of which the same holds."""


def speeds_of(
    stream: Stream, cell: Cell, config: Any, cards: Sequence[Card], without: str = ""
) -> tuple[Speed, ...]:
    """Return how fast the last step of a stream is on each card, by factors without those of a source."""
    if not cards:
        return ()
    caveats = stream.reached.caveats if stream.reached else ()
    why = _untold(stream.calls[-1], caveats, cell, config)
    if why:
        return tuple(Speed(card=card.name, refused=why) for card in cards)
    calls = [(call, work_of(call)) for call in stream.calls[-1].distinct()]
    return tuple(_speed(calls, cell, card, without) for card in cards)


def speed_here(
    steps: Sequence[Calls], caveats: Sequence[Caveat], cell: Cell, config: Any, machine: MachineCard
) -> Speed:
    """Return how fast the last step is on this machine's CPU, which dispatches and computes by turns."""
    why = f"steps of {cell.loop.driver} are not timed on a CPU"
    if why := _untold(steps[-1], caveats, cell, config) if steps else why:
        return Speed(card=THIS_CPU, refused=why)
    sums = _Sums(serial=True)
    for call in steps[-1].distinct():
        work = work_of(call)
        time, factors = cpu_time(call, work, machine), defaultdict(lambda: 1.0, host=machine.host)
        least = work.flops / machine.peak_flops if work.flops else time.seconds
        sums.add(call, work, time, factors, least)
    table = constants()["cpu"]
    band = table["band"] * (1 + machine.spread) * (table["busy_band"] if machine.busy else 1)
    assumed = [_ASSUMED_HERE, *filter(None, [machine.busy.rstrip(".")])]
    return _told(sums, cell, THIS_CPU, peak_flops=machine.peak_flops, bands=(band, band), assumed=assumed)


def _untold(calls: Calls, caveats: Sequence[Caveat], cell: Cell, config: Any) -> str:
    """Return why a cell's speed is not told on any card; empty where it is."""
    kernels, method = cell.training.kernels, cell.method
    boft = isinstance(method, PeftMethod) and method.type == "boft"
    fields = vars(config.get_text_config()).items()
    names = [name for name, value in fields if type(value) is int and any(map(name.count, _UNTIMED_LAYERS))]
    ops = sorted({form.op for form in calls.of.forms})
    unknown = next((op for op in ops if any(name in op for name in _UNTIMED)), "")
    reasons = {
        f"the kernels of {kernels} are not timed": kernels != "torch",
        "BOFT's products of block-diagonal matrices run in a kernel of its own, which is not timed": boft,
        "faster kernels than those traced may run": any(one.code == KERNELS_NOT_TRACED for one in caveats),
        "steps over pairs of answers are not timed": cell.loop.takes_pairs,
        "what torch.compile fuses is not seen": bool(cell.loop.args.get("torch_compile")),
        f"kernels of experts and of state spaces are not timed ({', '.join(names[:1])})": bool(names),
        f"there is no time for {unknown}": bool(unknown),
    }
    return next((why for why, holds in reasons.items() if holds), "")


@dataclass
class _Sums:
    """Seconds of a step on a card: by class of kernels, by operator and module, by what bounds them."""

    kinds: dict[KernelClass, float] = field(default_factory=lambda: defaultdict(float))
    places: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    limits: dict[Limit, float] = field(default_factory=lambda: defaultdict(float))
    gpu: dict[bool, float] = field(default_factory=lambda: {False: 0.0, True: 0.0})
    host: dict[bool, float] = field(default_factory=lambda: {False: 0.0, True: 0.0})
    flops: float = 0.0
    fp32_attention: float = 0.0
    least: float = 0.0
    serial: bool = False
    """What dispatches also computes, so that both count."""

    def add(self, call: Call, work: Work, time: Time, factors: dict[str, float], least: float) -> None:
        """Add calls that are alike, one of ``least`` seconds. The optimizer's part is apart: it waits."""
        taken = time.seconds * factors[class_of(work.kind)] * call.times
        updating = call.form.phase == "optimizer_step"
        self.gpu[updating] += taken
        self.host[updating] += host_seconds(call) * call.times * factors["host"]
        self.kinds[work.kind] += taken
        self.fp32_attention += taken if work.attention and not work.half else 0
        self.limits["compute" if time.computing else "memory"] += taken
        self.places[call.form.op, call.form.module] += taken
        self.least += min(least, time.seconds) * call.times  # a cache may be faster than the memory
        self.flops += 0 if call.form.recomputed else work.flops * call.times

    def step_s(self, gpu: float = 1, host: float = 1) -> float:
        """Return the seconds of a step: of the GPU and the host that feeds it the slower counts."""
        both = [(self.gpu[part] * gpu, self.host[part] * host) for part in self.gpu]
        if self.serial:
            return sum(map(sum, both))
        slower = map(max, both)
        return sum(slower, float(constants()["host"]["step_us"]) * 1e-6)

    @property
    def bound_by(self) -> Limit:
        """What sets the time."""
        hosted = sum(self.host.values()) > sum(self.gpu.values())
        return "host" if hosted else max(self.limits, key=lambda one: self.limits[one])


def _speed(calls: Sequence[tuple[Call, Work]], cell: Cell, card: Card, without: str) -> Speed:
    rates = rates_of(card)
    if rates is None:
        return Speed(card=card.name, refused="no source of its multiprocessors, clock and cache was read")
    table = constants()["calibration"]
    factors = table["cards"].get(card.name, table["other"])
    factors = {"host": table["host"]} | factors | table["without"].get(without, {})
    sums = _Sums()
    for call, work in calls:
        sums.add(call, work, time_of(work, rates), factors, least_seconds(work, card))
    total = sum(sums.kinds.values())
    assumed = [] if card.name in table["cards"] else [_UNCALIBRATED]
    band, host_band = factors["band"], table["host_band"]
    if sums.fp32_attention > _SLIGHT * total:
        band = max(band, table["fp32_attention_band"])
        assumed.append(_FP32_ATTENTION)
    bands = band, host_band
    return _told(sums, cell, card.name, peak_flops=card.peak_bf16_flops or 1, bands=bands, assumed=assumed)


def _told(
    sums: _Sums,
    cell: Cell,
    name: str,
    *,
    peak_flops: float,
    bands: tuple[float, float],
    assumed: Sequence[str],
) -> Speed:
    training, total = cell.training, sum(sums.kinds.values())
    tokens = training.micro_batch * training.gradient_accumulation * training.sequence_length
    band, host_band = bands
    kinds = sorted(sums.kinds.items(), key=lambda one: -one[1])
    dearest = sorted(sums.places.items(), key=lambda one: -one[1])[:_DEAREST]
    return Speed(
        card=name,
        low=tokens / sums.step_s(band, host_band),
        point=tokens / sums.step_s(),
        high=tokens / sums.step_s(1 / band, 1 / host_band),
        mfu=sums.flops / sums.step_s() / peak_flops,
        bound_by=sums.bound_by,
        step_s=sums.step_s(),
        roofline=tokens / sums.least if sums.least else 0,
        shares={kind: taken / total for kind, taken in kinds if taken},
        dearest=tuple(Dear(op=op, module=module, share=taken / total) for (op, module), taken in dearest),
        assumed="; ".join(assumed),
    )


def class_of(kind: KernelClass) -> str:
    """Return which factor kernels of a class share."""
    return kind.replace(" ", "_") if kind in {"product", "fp32 product", "attention"} else "memory"


_SLIGHT = 0.05
_FP32_ATTENTION = "attention runs in fp32 in some cells, of which no training run was at hand"
_ASSUMED_HERE = "the width of the range is assumed, since kernels meet data in other caches than as measured"
_UNCALIBRATED = "no training run on this card was at hand, so that the band is as wide as cards differ"


def host_seconds(call: Call) -> float:
    """Return how long a usual host takes to dispatch a call."""
    form = call.form
    kind = "view" if form.view else "list" if form.listed else form.phase
    if kind == form.phase and not form.op.startswith("aten::"):
        kind = "foreign"
    return float(constants()["host"][f"{kind}_us"]) * 1e-6
