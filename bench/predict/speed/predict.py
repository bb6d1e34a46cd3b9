"""How fast a traced step runs on a card: kernels beside the host that dispatches them, with a band."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from bench.predict.speed.cpu import cpu_time
from bench.predict.speed.kernels import (
    Work,
    constants,
    least_seconds,
    rates_of,
    time_of,
    work_of,
)
from bench.predict.trace.calls import Call, Calls, Ints
from bench.predict.trace.stream import Stream
from bench.records.machine_card import THIS_CPU, MachineCard
from bench.records.predictions import KERNELS_NOT_TRACED, Dear, KernelClass, Limit, Speed
from bench.records.readings import Caveat
from bench.scenario.catalogue import Card
from bench.scenario.cell import Cell
from bench.scenario.types import PeftMethod

Floats = NDArray[np.float64]
_DEAREST = 5
_UNTIMED = ("_linalg_", "linalg_inv", "linalg_qr", "linalg_h", "linalg_l", "cholesky", "grouped_mm", "int8")
"""In names of operators whose kernels have no time here."""
_UNTIMED_LAYERS = ("experts", "mamba", "ssm", "linear_conv")
"""In names of a configuration's numbers: layers of which the same holds."""

MOST_ON_A_MACHINE = 8


class LinkTimes(NamedTuple):
    """Seconds that all collectives of a step take, one after the other, at three rates; and what to say."""

    best: float = 0.0
    usual: float = 0.0
    worst: float = 0.0
    told: tuple[str, ...] = ()


ALONE = LinkTimes()


def why_unlinked(card: Card, gpus: int) -> str:
    """Return why nothing is told of so many GPUs; empty where it is."""
    if gpus > MOST_ON_A_MACHINE:
        return f"how machines are linked is not known, so speed is told of at most {MOST_ON_A_MACHINE} GPUs"
    return "" if gpus == 1 or card.link else "no source of how such cards are linked was read"


def link_times(works: Iterable[tuple[Work, float]], card: Card, gpus: int) -> LinkTimes:
    """Return what collectives take between the GPUs of a machine; each stands with how often it comes.

    They go by NCCL's rings: in one of n GPUs each sends (n-1)/n of what is gathered, or reduced, in n-1
    steps.
    """
    link = card.link
    if gpus == 1 or link is None:
        return ALONE
    count = rounds = nbytes = 0.0
    for work, times in works:
        count += times * bool(work.rounds)
        rounds += times * work.rounds
        nbytes += times * work.rounds * work.gathered
    table = constants()["links"]
    own = table[link.name.lower()]
    waiting = (count * table["base_us"] + rounds * (gpus - 1) * own["step_us"]) * 1e-6
    sent = nbytes * (gpus - 1) / gpus / (link.gb_per_s * 1e9)
    worst, usual, best = own["shares"]
    told = (
        "over several GPUs the range is a bound: at the high end all collectives run beside the rest and "
        f"{link.name} carries {best * 100:.0f} % of {link.gb_per_s:g} GB/s, at the low end none does and it "
        f"carries {worst * 100:.0f} %"
    )
    return LinkTimes(waiting + sent / best, waiting + sent / usual, waiting + sent / worst, (told,))


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
    step = _Step.of(stream.calls[-1])
    timed = np.array([*map(_timer(tuple(cards)), step.works)])
    return tuple(_speed(step, timed[:, at], cell, card, without) for at, card in enumerate(cards))


def speed_here(
    steps: Sequence[Calls], caveats: Sequence[Caveat], cell: Cell, config: Any, machine: MachineCard
) -> Speed:
    """Return how fast the last step is on this machine's CPU, which dispatches and computes by turns."""
    why = f"steps of {cell.loop.driver} are not timed on a CPU"
    if cell.parallel.several:
        return Speed(card=THIS_CPU, refused="steps of several processes are not timed on a CPU")
    if why := _untold(steps[-1], caveats, cell, config) if steps else why:
        return Speed(card=THIS_CPU, refused=why)
    step = _Step.of(steps[-1])
    timed = []
    for call, work in zip(step.calls, step.works, strict=True):
        time = cpu_time(call, work, machine)
        timed.append((*time, work.flops / machine.peak_flops if work.flops else time.seconds))
    factors = defaultdict(lambda: 1.0, host=machine.host)
    sums = _Sums.of(step, np.array(timed), factors, serial=True)
    table = constants()["cpu"]
    band = table["band"] * (1 + machine.spread) * (table["busy_band"] if machine.busy else 1)
    assumed = [_ASSUMED_HERE, *filter(None, [machine.busy[:1].lower() + machine.busy[1:].rstrip(".")])]
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


_Name = TypeVar("_Name", bound=Hashable)


@dataclass(frozen=True)
class _Numbered(Generic[_Name]):
    """Names in the order in which they first come, and which of them each call has."""

    names: Sequence[_Name]
    which: Ints

    @classmethod
    def of(cls, names: Iterable[_Name]) -> "_Numbered[_Name]":
        found: dict[_Name, int] = {}
        which = np.array([found.setdefault(name, len(found)) for name in names], dtype=np.int64)
        return cls(list(found), which)

    def sums(self, values: Floats) -> dict[_Name, float]:
        """Return the sum of each name's values, added in their order."""
        return dict(zip(self.names, _sums(self.which, values, len(self.names)), strict=True))


def _sums(which: Ints, values: Floats, count: int) -> list[float]:
    return np.bincount(which, values, count).tolist()  # type: ignore[no-any-return]  # a list of floats


@dataclass(frozen=True)
class _Step:
    """The calls of a step, those that are alike together: what is the same on each card."""

    calls: Sequence[Call]
    works: Sequence[Work]
    times: Floats
    kinds: _Numbered[KernelClass]
    places: _Numbered[tuple[str, str]]
    updating: Ints
    fp32_attention: Ints
    host: Floats
    flops: float

    @classmethod
    def of(cls, of_step: Calls) -> "_Step":
        calls = list(of_step.distinct())
        works = [work_of(call) for call in calls]
        both = list(zip(calls, works, strict=True))
        flops = [0.0 if call.form.recomputed else float(work.flops * call.times) for call, work in both]
        return cls(
            calls,
            works,
            times=np.array([call.times for call in calls], dtype=np.float64),
            kinds=_Numbered.of(work.kind for work in works),
            places=_Numbered.of((call.form.op, call.form.module) for call in calls),
            updating=np.array([call.form.phase == "optimizer_step" for call in calls], dtype=np.int64),
            fp32_attention=np.array(
                [bool(work.attention) and not work.half for work in works], dtype=np.int64
            ),
            host=np.array([host_seconds(call) * call.times for call in calls]),
            flops=sum(flops),
        )


@dataclass
class _Sums:
    """Seconds of a step on a card: by class of kernels, by operator and module, by what bounds them.

    The optimizer's part is apart: it waits. ``least`` is by the data sheet.
    """

    kinds: dict[KernelClass, float]
    places: dict[tuple[str, str], float]
    limits: dict[Limit, float]
    gpu: Sequence[float]
    host: Sequence[float]
    flops: float
    fp32_attention: float
    least: float
    serial: bool = False
    """What dispatches also computes, so that both count."""

    @classmethod
    def of(cls, step: _Step, timed: Floats, factors: Mapping[str, float], *, serial: bool = False) -> "_Sums":
        """Add up calls, of which a row each says seconds, whether computing takes them, and the least."""
        seconds, computing, least = timed.T
        factor = np.array([factors[class_of(kind)] for kind in step.kinds.names])
        taken = seconds * factor[step.kinds.which] * step.times
        limits = _Numbered[Limit].of("compute" if one else "memory" for one in computing.tolist())
        whole = np.zeros(len(seconds), dtype=np.int64)
        # A cache may be faster than the memory.
        (fastest,) = _sums(whole, np.minimum(least, seconds) * step.times, 1)
        return cls(
            kinds=step.kinds.sums(taken),
            places=step.places.sums(taken),
            limits=limits.sums(taken),
            gpu=_sums(step.updating, taken, 2),
            host=_sums(step.updating, step.host * factors["host"], 2),
            flops=step.flops,
            fp32_attention=_sums(step.fp32_attention, taken, 2)[True],
            least=fastest,
            serial=serial,
        )

    def step_s(self, gpu: float = 1, host: float = 1) -> float:
        """Return the seconds of a step: of the GPU and the host that feeds it the slower counts."""
        both = [(its * gpu, its_host * host) for its, its_host in zip(self.gpu, self.host, strict=True)]
        if self.serial:
            return sum(map(sum, both))
        slower = map(max, both)
        return sum(slower, float(constants()["host"]["step_us"]) * 1e-6)

    @property
    def bound_by(self) -> Limit:
        hosted = sum(self.host) > sum(self.gpu)
        return "host" if hosted else max(self.limits, key=lambda one: self.limits[one])


@lru_cache(maxsize=8)
def _timer(cards: tuple[Card, ...]) -> Callable[[Work], Sequence[tuple[float, ...]]]:
    """Return what times a work on each of some cards: the cells of a plan share most of it."""
    rates = [rates_of(card) for card in cards]

    @lru_cache(maxsize=1 << 17)
    def timed(work: Work) -> list[tuple[float, ...]]:
        return [
            (*time_of(work, its), least_seconds(work, card)) if its else (0.0, 0.0, 0.0)
            for card, its in zip(cards, rates, strict=True)
        ]

    return timed


def _speed(step: _Step, timed: Floats, cell: Cell, card: Card, without: str) -> Speed:
    gpus, why = cell.parallel.gpus, "no source of its multiprocessors, clock and cache was read"
    if cell.parallel.cpu_offload:
        return Speed(card=card.name, refused="the optimizer runs on the host's CPU, whose time is not known")
    if rates_of(card) is None or (why := why_unlinked(card, gpus)):
        return Speed(card=card.name, refused=why)
    table = constants()["calibration"]
    factors = table["cards"].get(card.name, table["other"])
    factors = {"host": table["host"]} | factors | table["without"].get(without, {})
    sums = _Sums.of(step, timed, factors)
    total = sum(sums.kinds.values())
    near = next((f"; {name} has its own" for name in table["cards"] if name.startswith(f"{card.name}-")), "")
    assumed = [] if card.name in table["cards"] else [_UNCALIBRATED + near]
    band, host_band = factors["band"], table["host_band"]
    if sums.fp32_attention > _SLIGHT * total:
        band = max(band, table["fp32_attention_band"])
        assumed.append(_FP32_ATTENTION)
    links = link_times(zip(step.works, step.times.tolist(), strict=True), card, gpus)
    peak, bands = card.peak_bf16_flops or 1, (band, host_band)
    return _told(sums, cell, card.name, peak_flops=peak, bands=bands, assumed=assumed, links=links)


def _told(
    sums: _Sums,
    cell: Cell,
    name: str,
    *,
    peak_flops: float,
    bands: tuple[float, float],
    assumed: Sequence[str],
    links: LinkTimes = ALONE,
) -> Speed:
    """Return what sums come to: collectives run beside the rest at the high end, and not at the low."""
    training, total, gpus = cell.training, sum(sums.kinds.values()), cell.parallel.gpus
    tokens = gpus * training.micro_batch * training.gradient_accumulation * training.sequence_length
    band, host_band = bands
    alone_s = sums.step_s()
    step_s = (max(alone_s, links.usual) + alone_s + links.usual) / 2
    kinds = sorted(sums.kinds.items(), key=lambda one: -one[1])
    dearest = sorted(sums.places.items(), key=lambda one: -one[1])[:_DEAREST]
    return Speed(
        card=name,
        gpus=gpus,
        low=tokens / (sums.step_s(band, host_band) + links.worst),
        point=tokens / step_s,
        high=tokens / max(sums.step_s(1 / band, 1 / host_band), links.best),
        mfu=sums.flops / step_s / peak_flops,
        bound_by="links" if links.usual > alone_s else sums.bound_by,
        step_s=step_s,
        links_s=links.usual,
        roofline=tokens / sums.least if sums.least else 0,
        shares={kind: taken / total for kind, taken in kinds if taken},
        dearest=tuple(Dear(op=op, module=module, share=taken / total) for (op, module), taken in dearest),
        assumed="; ".join([*assumed, *links.told]),
    )


def class_of(kind: KernelClass) -> str:
    """Return which factor kernels of a class share."""
    return kind.replace(" ", "_") if kind in {"product", "fp32 product", "attention"} else "memory"


_SLIGHT = 0.05
_FP32_ATTENTION = "attention runs in fp32 in some cells, of which no training run was at hand"
_ASSUMED_HERE = "the width of the range is assumed, since kernels meet data in other caches than as measured"
_UNCALIBRATED = (
    "no training run on this card had a part in its factors, so that the band is as wide as cards differ"
)


def host_seconds(call: Call) -> float:
    """Return how long a usual host takes to dispatch a call."""
    form = call.form
    kind = "view" if form.view else "list" if form.listed else form.phase
    if kind == form.phase and not form.op.startswith("aten::"):
        kind = "foreign"
    return float(constants()["host"][f"{kind}_us"]) * 1e-6
