"""What cannot be right in a record: one instrument below another that it contains, faster than the hardware.

Each lint is a function of one record and knows no other. A finding says that the record must not be believed
as it stands, not why; a loss that does not fall is no finding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from bench.compare.floors import flops_per_second_limit, weights_floor_bytes, weights_read_bytes_per_second
from bench.metrics import GIB, MIB
from bench.records.derived_metrics import NS_PER_SECOND, TRAINING_PHASES, measured_steps
from bench.records.records import Phase, PhaseReading, Record, StepSample

if TYPE_CHECKING:
    import pandas as pd

Doubted = Literal["memory", "speed", "energy", "loss"]
# Pages that torch has allocated and nobody has written are in the ledger and not yet in the process.
_UNTOUCHED_SHARE = 0.05
# Power limits hold over a second or so; shorter phases may exceed them.
_SHORTEST_POWER_NS = 2 * NS_PER_SECOND
_POWER_SLACK = 1.1
_CLOCK_SLACK_NS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One implausibility: a code, the kind of number it casts doubt on, and a sentence with both figures."""

    code: str
    doubts: Doubted
    sentence: str


def lint(record: Record) -> tuple[Finding, ...]:
    """Return everything implausible about a record, however it ended."""
    checks = (_allocator, _driver, _weights, _ledger, _layout, _counts, _clock, _roofline, _bandwidth, _power)
    return tuple(finding for check in (*checks, _losses) for finding in check(record))


def with_findings(frame: "pd.DataFrame", records: Sequence[Record]) -> "pd.DataFrame":
    """Return the tidy table of these records with the codes of their findings in a column; NA for none."""
    codes = ["; ".join(dict.fromkeys(finding.code for finding in lint(record))) for record in records]
    column = frame.assign(implausible=codes)["implausible"].astype("string")
    return frame.assign(implausible=column.mask(column == ""))


def _allocator(record: Record) -> Iterator[Finding]:
    """Find less reserved than allocated: torch reserves what it allocates from."""
    for phase in record.measurement.phases:
        allocated, reserved = phase.cuda_allocated_peak_bytes, phase.cuda_reserved_peak_bytes
        if allocated is not None and reserved is not None and reserved < allocated:
            yield Finding(
                code="reserved-below-allocated",
                doubts="memory",
                sentence=f"In {phase.name} torch reserved {_size(reserved)} at most, yet had "
                f"{_size(allocated)} allocated.",
            )


def _driver(record: Record) -> Iterator[Finding]:
    """Find NVML below torch: it sees all that torch holds.

    What was reserved before a sampled phase, and again in it, was held when it was sampled.
    """
    gpu = record.measurement.gpu
    if gpu is None:
        return
    readings = [phase for phase in record.measurement.phases if phase.cuda_reserved_peak_bytes is not None]
    sampled = {phase.name: phase for phase in gpu.phases if phase.samples}
    for before, phase in pairwise(readings):
        seen = sampled.get(phase.name)
        if seen is None:
            continue
        held = min(before.cuda_reserved_peak_bytes or 0, phase.cuda_reserved_peak_bytes or 0)
        process = seen.process_peak_bytes if gpu.isolation == "process" else None
        for who, peak in (("the process", process), ("the device", seen.device_peak_bytes)):
            if peak is not None and peak < held:
                yield Finding(
                    code="nvml-below-torch",
                    doubts="memory",
                    sentence=f"In {phase.name} NVML saw {_size(peak)} of {who} at most, while torch held "
                    f"{_size(held)}.",
                )


def _weights(record: Record) -> Iterator[Finding]:
    """Find a peak after the first forward pass that is below the fewest bytes of the weights."""
    floor = weights_floor_bytes(record)
    ledger, stepped = record.measurement.ledger, _peaks(record, after="first_forward")
    readings = [("live tensors", ledger.peak_bytes if ledger else None)]
    readings += [("torch's allocator", max(stepped["cuda_allocated_peak_bytes"], default=None))]
    if record.cell.device == "cpu":
        readings += [("the process", max(stepped["host_peak_bytes"], default=None))]
    for who, peak in readings:
        if floor is not None and peak is not None and peak < floor:
            yield Finding(
                code="peak-below-weights",
                doubts="memory",
                sentence=f"The peak of {who} is {_size(peak)}, and the weights alone take {_size(floor)}.",
            )


def _ledger(record: Record) -> Iterator[Finding]:
    """Find more live tensors than the allocator of a GPU, or the process on a CPU, has ever held."""
    ledger = record.measurement.ledger
    field, who, slack = (
        ("cuda_allocated_peak_bytes", "torch's allocator", 0.0)
        if record.cell.device == "cuda"
        else ("host_peak_bytes", "the process", _UNTOUCHED_SHARE)
    )
    peak = max(_peaks(record)[field], default=None)
    if ledger is not None and peak is not None and ledger.peak_bytes * (1 - slack) > peak:
        yield Finding(
            code="ledger-above-process",
            doubts="memory",
            sentence=f"The ledger counted {_size(ledger.peak_bytes)} of live tensors, and {who} never held "
            f"more than {_size(peak)}.",
        )


def _layout(record: Record) -> Iterator[Finding]:
    """Find a step that did not compute its batch: all of it where rows are of one length, else a part."""
    training = record.cell.training
    batch = training.micro_batch * training.sequence_length * training.gradient_accumulation
    full = record.cell.data.source == "synthetic" or training.batching != "pad-to-longest"
    for step in record.measurement.steps:
        tokens = step.tokens
        wrong = tokens.computed != batch if full else tokens.computed > batch
        if wrong or not tokens.loss_bearing <= tokens.non_padding <= tokens.computed:
            yield Finding(
                code="tokens-not-the-batch",
                doubts="speed",
                sentence=f"Step {step.index} counts {tokens.computed:,} tokens computed, "
                f"{tokens.non_padding:,} without padding and {tokens.loss_bearing:,} in the loss, where the "
                f"batch has {batch:,}.",
            )
            return


def _counts(record: Record) -> Iterator[Finding]:
    """Find a good run that has not taken every step of its window, once and in order."""
    window, steps = record.cell.window, record.measurement.steps
    expected = ["first", *["warmup"] * window.warmup_steps, *["measured"] * window.measured_steps]
    in_order = [step.index for step in steps] == list(range(len(steps)))
    if record.outcome == "ok" and ([step.stage for step in steps] != expected or not in_order):
        yield Finding(
            code="steps-not-the-window",
            doubts="speed",
            sentence=f"The window is of {len(expected)} steps, and the record has {len(steps)}"
            f"{'' if in_order else ', not in order'}.",
        )


def _clock(record: Record) -> Iterator[Finding]:
    """Find steps that do not fit into their phase, or phases that do not fit into the run."""
    for name, stage in (("warmup", "warmup"), ("steady", "measured")):
        phases = [phase for phase in record.measurement.phases if phase.name == name]
        steps = [step for step in record.measurement.steps if step.stage == stage]
        if phases and sum(step.step_time_ns for step in steps) > _duration_ns(phases) + _CLOCK_SLACK_NS:
            yield _too_long(
                f"the steps of phase {name}", steps, f"the phase took {_time(_duration_ns(phases))}"
            )
    phases = list(record.measurement.phases)
    if _duration_ns(phases) > record.total_ns + _CLOCK_SLACK_NS * len(phases):
        yield _too_long("the phases", phases, f"the whole run took {_time(record.total_ns)}")


def _roofline(record: Record) -> Iterator[Finding]:
    """Find a step faster than the card's data sheet, or than the cores of any processor."""
    flops, limit = record.measurement.flops, flops_per_second_limit(record)
    fastest = _fastest(record)
    if flops is None or limit is None or fastest is None:
        return
    # Steps of other lengths compute in proportion at least: attention grows faster.
    share = min(1.0, fastest.tokens.computed / flops.tokens.computed) ** 2
    speed = flops.step_flops * share * NS_PER_SECOND / fastest.step_time_ns
    if speed > limit.value:
        yield Finding(
            code="above-roofline",
            doubts="speed",
            sentence=f"Step {fastest.index} would have computed {speed / 1e12:,.1f} TFLOP/s, and {limit.who} "
            f"reaches {limit.value / 1e12:,.1f} at most.",
        )


def _bandwidth(record: Record) -> Iterator[Finding]:
    """Find a step too short to read the weights of a dense model once in each forward pass."""
    limit, fastest = weights_read_bytes_per_second(record), _fastest(record)
    floor = weights_floor_bytes(record)
    if limit is None or fastest is None or floor is None:
        return
    speed = floor * record.cell.training.gradient_accumulation * NS_PER_SECOND / fastest.step_time_ns
    if speed > limit.value:
        yield Finding(
            code="above-bandwidth",
            doubts="speed",
            sentence=f"Step {fastest.index} would have read its weights at {speed / 1e9:,.0f} GB/s, and "
            f"{limit.who} reaches {limit.value / 1e9:,.0f} at most.",
        )


def _power(record: Record) -> Iterator[Finding]:
    """Find more energy over time than the power limit allows."""
    gpu = record.measurement.gpu
    limit_mw = gpu.facts.power_limit_mw if gpu else None
    if gpu is None or not limit_mw:
        return
    for seen in gpu.phases:
        phases = [phase for phase in record.measurement.phases if phase.name == seen.name]
        duration_ns = _duration_ns(phases)
        if seen.energy_mj is None or duration_ns < _SHORTEST_POWER_NS:
            continue
        power_mw = seen.energy_mj * NS_PER_SECOND / duration_ns
        if power_mw > limit_mw * _POWER_SLACK:
            yield Finding(
                code="energy-above-power-limit",
                doubts="energy",
                sentence=f"In {seen.name} the card would have drawn {power_mw / 1000:,.0f} W on average, and "
                f"its limit is {limit_mw / 1000:,.0f} W.",
            )


def _losses(record: Record) -> Iterator[Finding]:
    """Find losses that are no numbers."""
    steps = record.measurement.steps
    bad = [step.index for step in steps if not abs(step.loss) < float("inf")]
    if bad:
        yield Finding(
            code="loss-not-finite",
            doubts="loss",
            sentence=f"The loss was not finite in {len(bad)} of {len(steps)} steps, first in step {bad[0]}.",
        )


def _too_long(what: str, parts: Sequence[StepSample] | Sequence[PhaseReading], whole: str) -> Finding:
    total_ns = sum(part.step_time_ns if isinstance(part, StepSample) else part.duration_ns for part in parts)
    sentence = f"{what[0].upper()}{what[1:]} add up to {_time(total_ns)}, and {whole}."
    return Finding(code="parts-longer-than-the-whole", doubts="speed", sentence=sentence)


def _fastest(record: Record) -> StepSample | None:
    """Return the measured step with the most tokens per second that did not skip its optimizer."""
    steps = [step for step in measured_steps(record) if not step.skipped]
    return max(steps, key=lambda step: step.tokens.computed / step.step_time_ns, default=None)


def _peaks(record: Record, after: Phase | None = None) -> dict[str, list[int]]:
    """Return the peaks of training and of the ledger's steps by each instrument, from a phase on."""
    names: list[Phase] = [*TRAINING_PHASES, "ledger"]
    wanted = names if after is None else names[names.index(after) + 1 :]
    return {
        field: [
            peak
            for phase in record.measurement.phases
            if phase.name in wanted and (peak := getattr(phase, field)) is not None
        ]
        for field in ("host_peak_bytes", "cuda_allocated_peak_bytes")
    }


def _duration_ns(phases: Sequence[PhaseReading]) -> int:
    return sum(phase.duration_ns for phase in phases)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.1f} MiB"


def _time(duration_ns: int) -> str:
    return f"{duration_ns / NS_PER_SECOND:.3f} s"
