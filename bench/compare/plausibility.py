"""What cannot be right in a record: one instrument below another that it contains, faster than the hardware.

Each check is a function of one record and knows no other. A finding says that the record must not be believed
as it stands, not why; a loss that does not fall is no finding.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from bench.metrics import GIB, MIB
from bench.records.derived_metrics import TRAINING_PHASES, PeakField
from bench.records.records import NS_PER_SECOND, Phase, Record, StepSample
from bench.scenario.platform import cards_named

if TYPE_CHECKING:
    import pandas as pd

Doubted = Literal["memory", "speed", "energy", "loss"]
_STEPPING: tuple[Phase, ...] = (*TRAINING_PHASES, "ledger")
_AFTER_FIRST_FORWARD = _STEPPING[_STEPPING.index("first_forward") + 1 :]
# Pages that torch has allocated and nobody has written are in the ledger and not yet in the process.
_UNTOUCHED_SHARE = 0.05
# Power limits hold over a second or so; shorter phases may exceed them.
_SHORTEST_POWER_NS = 2 * NS_PER_SECOND
_POWER_SLACK = 1.1
_CLOCK_SLACK_NS = 1_000_000
_DTYPE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}
_FOUR_BIT_BYTES, _INT8_BYTES = 0.5, 1.0
# Clocks rise above the data sheet's, and makers sell faster variants under the same name.
_SLACK = 1.25
_INT8_SPEED = 2.0  # times bf16, in the white papers of every architecture here
# Advanced Matrix Extensions do 2048 bf16 operations a cycle and core (Intel's optimisation manual, table of
# TDPBF16PS), which at 4 GHz is 8.2e12; nothing else on a CPU comes near.
_CPU_THREAD_FLOPS = 8.2e12
_IN_NO_CACHE_BYTES = 256 * MIB  # larger than the second-level cache of any card


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One implausibility: a code, the kind of number it casts doubt on, and a sentence with both figures."""

    code: str
    doubts: Doubted
    sentence: str


def lint(record: Record) -> tuple[Finding, ...]:
    """Return everything implausible about a record, however it ended."""
    return tuple(
        Finding(code=code, doubts=doubts, sentence=sentence)
        for code, doubts, check in _CHECKS
        for sentence in check(record)
    )


def with_findings(frame: "pd.DataFrame", records: Sequence[Record]) -> "pd.DataFrame":
    """Return the tidy table of these records with the codes of their findings in a column; NA for none."""
    codes = ["; ".join(dict.fromkeys(finding.code for finding in lint(record))) for record in records]
    column = frame.assign(implausible=codes)["implausible"].astype("string")
    return frame.assign(implausible=column.mask(column == ""))


def _reserved(record: Record) -> Iterator[str]:
    """Find less reserved than allocated: torch reserves what it allocates from."""
    for phase in record.measurement.phases:
        allocated, reserved = phase.cuda_allocated_peak_bytes, phase.cuda_reserved_peak_bytes
        if allocated is not None and reserved is not None and reserved < allocated:
            held = f"yet had {_size(allocated)} allocated"
            yield f"In {phase.name} torch reserved {_size(reserved)} at most, {held}."


def _nvml(record: Record) -> Iterator[str]:
    """Find NVML below torch: it sees all that torch holds.

    What was reserved before a sampled phase, and again in it, was held when it was sampled.
    """
    gpu = record.measurement.gpu
    if gpu is None:
        return
    readings = [phase for phase in record.measurement.phases if phase.cuda_reserved_peak_bytes is not None]
    sampled = {phase.name: phase for phase in gpu.phases if phase.samples}
    for before, phase in pairwise(readings):
        held = min(before.cuda_reserved_peak_bytes or 0, phase.cuda_reserved_peak_bytes or 0)
        if seen := sampled.get(phase.name):
            process = seen.process_peak_bytes if gpu.isolation == "process" else None
            for who, peak in (("the process", process), ("the device", seen.device_peak_bytes)):
                if peak is not None and peak < held:
                    saw = f"NVML saw {_size(peak)} of {who} at most"
                    yield f"In {phase.name} {saw}, while torch held {_size(held)}."


def _weights(record: Record) -> Iterator[str]:
    """Find a peak after the first forward pass that is below the fewest bytes of the weights."""
    floor, ledger = _weights_floor_bytes(record), record.measurement.ledger
    readings = {
        "live tensors": ledger.peak_bytes if ledger else None,
        "torch's allocator": _peak(record, "cuda_allocated_peak_bytes", _AFTER_FIRST_FORWARD),
    }
    if record.cell.device == "cpu":
        readings["the process"] = _peak(record, "host_peak_bytes", _AFTER_FIRST_FORWARD)
    for who, peak in readings.items():
        if floor is not None and peak is not None and peak < floor:
            yield f"The peak of {who} is {_size(peak)}, and the weights alone take {_size(floor)}."


def _ledger(record: Record) -> Iterator[str]:
    """Find more live tensors than the allocator of a GPU, or the process on a CPU, has ever held."""
    ledger = record.measurement.ledger
    if record.cell.device == "cuda":
        who, slack, peak = "torch's allocator", 0.0, _peak(record, "cuda_allocated_peak_bytes", _STEPPING)
    else:
        who, slack, peak = "the process", _UNTOUCHED_SHARE, _peak(record, "host_peak_bytes", _STEPPING)
    if ledger is not None and peak is not None and ledger.peak_bytes * (1 - slack) > peak:
        counted = f"The ledger counted {_size(ledger.peak_bytes)} of live tensors"
        yield f"{counted}, and {who} never held more than {_size(peak)}."


def _tokens(record: Record) -> Iterator[str]:
    """Find a step that did not compute its batch: all of it where rows are of one length, else a part."""
    training = record.cell.training
    batch = training.micro_batch * training.sequence_length * training.gradient_accumulation
    batch *= record.cell.parallel.gpus
    own_labels = record.cell.loop.driver == "script"  # which may lie on padding
    full = record.cell.data.source == "synthetic" or training.batching != "pad-to-longest"
    for step in record.measurement.steps:
        tokens = step.tokens
        wrong = tokens.computed != batch if full else tokens.computed > batch
        wrong |= tokens.loss_bearing > tokens.non_padding and not own_labels
        if wrong or tokens.non_padding > tokens.computed:
            counted = f"{tokens.computed:,} tokens computed, {tokens.non_padding:,} without padding"
            where = f"{tokens.loss_bearing:,} in the loss, where the batch has {batch:,}"
            yield f"Step {step.index} counts {counted} and {where}."
            return


def _window(record: Record) -> Iterator[str]:
    window, steps = record.cell.window, record.measurement.steps
    expected = ["first", *["warmup"] * window.warmup_steps, *["measured"] * window.measured_steps]
    in_order = [step.index for step in steps] == list(range(len(steps)))
    if record.outcome == "ok" and ([step.stage for step in steps] != expected or not in_order):
        there = f"{len(steps)}{'' if in_order else ', not in order'}"
        yield f"The window is of {len(expected)} steps, and the record has {there}."


def _durations(record: Record) -> Iterator[str]:
    phases = record.measurement.phases
    for name, stage in (("warmup", "warmup"), ("steady", "measured")):
        own = [phase.duration_ns for phase in phases if phase.name == name]
        steps = sum(step.step_time_ns for step in record.measurement.steps if step.stage == stage)
        # Of several ranks a step has the time of its slowest, which may be another one in each.
        if own and steps > sum(own) * max(1, len(record.measurement.ranks or ())) + _CLOCK_SLACK_NS:
            whole = f"the phase took {_time(sum(own))}"
            yield f"The steps of phase {name} add up to {_time(steps)}, and {whole}."
    total = sum(phase.duration_ns for phase in phases)
    if total > record.total_ns + _CLOCK_SLACK_NS * len(phases):
        yield f"The phases add up to {_time(total)}, and the whole run took {_time(record.total_ns)}."


def _roofline(record: Record) -> Iterator[str]:
    """Find a step faster than the card's data sheet, or than the cores of any processor."""
    flops, device, fastest = record.measurement.flops, record.measurement.device, _fastest(record)
    if flops is None or device is None or fastest is None:
        return
    if record.cell.device == "cpu":
        who, limit = f"a CPU with {device.cpu_threads} threads", device.cpu_threads * _CPU_THREAD_FLOPS
    else:
        known = [card.peak_bf16_flops or 0.0 for card in cards_named(device.cuda_name)]
        times = _INT8_SPEED if _frozen_base(record) == "int8" else 1
        who, limit = device.cuda_name or "cuda", max(known, default=0.0) * _SLACK * times
    # Steps of other lengths compute in proportion at least: attention grows faster.
    share = min(1.0, fastest.tokens.computed / flops.tokens.computed) ** 2
    speed = flops.step_flops * share * NS_PER_SECOND / fastest.step_time_ns
    if limit and speed > limit:
        done = f"Step {fastest.index} would have computed {speed / 1e12:,.1f} TFLOP/s"
        yield f"{done}, and {who} reaches {limit / 1e12:,.1f} at most."


def _bandwidth(record: Record) -> Iterator[str]:
    """Find a step too short to read the weights of a dense model once in each forward pass.

    Only of models too large for a cache that compute with each weight for each token: with two operations at
    least, which a mixture of experts falls short of.
    """
    device, flops, model = record.measurement.device, record.measurement.flops, record.measurement.model
    floor, fastest = _weights_floor_bytes(record), _fastest(record)
    if device is None or flops is None or model is None or floor is None or fastest is None:
        return
    dense = flops.step_flops >= 2 * model.parameters_total * flops.tokens.computed
    if record.cell.device != "cuda" or floor < _IN_NO_CACHE_BYTES or not dense:
        return
    known = [card.bandwidth_bytes_per_s or 0.0 for card in cards_named(device.cuda_name)]
    limit = max(known, default=0.0) * _SLACK
    speed = floor * record.cell.training.gradient_accumulation * NS_PER_SECOND / fastest.step_time_ns
    if limit and speed > limit:
        reaches = f"{device.cuda_name or 'cuda'} reaches {limit / 1e9:,.0f} at most"
        yield f"Step {fastest.index} would have read its weights at {speed / 1e9:,.0f} GB/s, and {reaches}."


def _power(record: Record) -> Iterator[str]:
    gpu = record.measurement.gpu
    limit_mw = gpu.facts.power_limit_mw if gpu else None
    for seen in gpu.phases if gpu and limit_mw else ():
        own = [phase.duration_ns for phase in record.measurement.phases if phase.name == seen.name]
        if seen.energy_mj is None or not limit_mw or sum(own) < _SHORTEST_POWER_NS:
            continue
        power_mw = seen.energy_mj * NS_PER_SECOND / sum(own)
        if power_mw > limit_mw * _POWER_SLACK:
            drawn = f"the card would have drawn {power_mw / 1000:,.0f} W on average"
            yield f"In {seen.name} {drawn}, and its limit is {limit_mw / 1000:,.0f} W."


def _losses(record: Record) -> Iterator[str]:
    steps = record.measurement.steps
    bad = [step.index for step in steps if not math.isfinite(step.loss)]
    if bad:
        yield f"The loss was not finite in {len(bad)} of {len(steps)} steps, first in step {bad[0]}."


_CHECKS: tuple[tuple[str, Doubted, Callable[[Record], Iterator[str]]], ...] = (
    ("reserved-below-allocated", "memory", _reserved),
    ("nvml-below-torch", "memory", _nvml),
    ("peak-below-weights", "memory", _weights),
    ("ledger-above-process", "memory", _ledger),
    ("tokens-not-the-batch", "speed", _tokens),
    ("steps-not-the-window", "speed", _window),
    ("parts-longer-than-the-whole", "speed", _durations),
    ("above-roofline", "speed", _roofline),
    ("above-bandwidth", "speed", _bandwidth),
    ("energy-above-power-limit", "energy", _power),
    ("loss-not-finite", "loss", _losses),
)


def _frozen_base(record: Record) -> str | None:
    """Return how the weights that are not trained are stored, where that is not as they are trained."""
    method = record.cell.method
    if method.kind == "qlora":
        return "4-bit"
    return "int8" if method.kind == "lora" and method.base == "int8" else None


def _weights_floor_bytes(record: Record) -> int | None:
    """Return the fewest bytes the weights can take as the method stores them; None before they are loaded."""
    model, trained = record.measurement.model, _DTYPE_BYTES[record.cell.training.dtype]
    if model is None:
        return None
    frozen = {"4-bit": _FOUR_BIT_BYTES, "int8": _INT8_BYTES, None: trained}[_frozen_base(record)]
    parameters = model.parameters_total - model.parameters_trainable
    shards = record.cell.parallel.gpus if record.cell.parallel.strategy == "fsdp2" else 1
    return int(parameters * frozen + model.parameters_trainable * trained) // shards


def _fastest(record: Record) -> StepSample | None:
    steps = [step for step in record.measurement.measured_steps if not step.skipped]
    return max(steps, key=lambda step: step.tokens.computed / step.step_time_ns, default=None)


def _peak(record: Record, field: PeakField, phases: Collection[Phase]) -> int | None:
    sizes = [getattr(phase, field) for phase in record.measurement.phases if phase.name in phases]
    return max((size for size in sizes if size is not None), default=None)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.1f} MiB"


def _time(duration_ns: int) -> str:
    return f"{duration_ns / NS_PER_SECOND:.3f} s"
