"""What a side reports of itself against what the gate saw of it: a clock, a look at memory, the same batches.

And what could not have been seen: the smallest change that would have been found at these repeats.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from bench.compare.metrics_compared import MetricSamples
from bench.compare.plausibility import Doubted, lint
from bench.errors import percent
from bench.metrics import GIB, MIB, Metric
from bench.records.readings import Caveat
from bench.records.records import NS_PER_SECOND, Record
from bench.records.run_summary import BY_STEP
from bench.records.sessions import SIDES, SideName, Sitting, SittingRecords, SittingRun
from bench.records.store import record_file_name
from bench.stats.chance import Rule
from bench.stats.noise import Noise, calibrate
from bench.stats.power import detectable_effect
from bench.stats.sequential import MetricPolicy

_SLACK_BYTES = 64 * MIB
_SLACK_SHARE = 0.05
_SLACK_S = 5.0
_SLACK_TIME_SHARE = 0.2
"""What looks every half second, start-up and the writing of a record may differ by."""

Seen = tuple[SittingRun, Record]
Kind = Doubted | Literal["ledger"]
Contradicted = dict[tuple[str, Kind], str]


def contradictions(loaded: SittingRecords) -> Contradicted:
    """Return by cell and kind of number why what the sides report of it cannot be compared.

    Where each side measured with a bench of its own, more memory in the process than its ledger tells of
    counts against it. Sides that take turns at steps have one time between them.
    """
    found: Contradicted = {}
    for cell in loaded.sitting.cells:
        seen = _good_runs(loaded, cell)
        if all(seen.values()):
            for doubted, why in _of_cell(seen, loaded.sitting):
                found.setdefault((cell, doubted), why)
    return found


def _good_runs(loaded: SittingRecords, cell: str) -> dict[SideName, list[Seen]]:
    """Return what the gate saw of each good run of a cell, with its record, by side."""
    runs = {(run.side, run.file): run for run in loaded.sitting.runs}
    return {
        side: [
            (runs[side, record_file_name(record)], record)
            for record in loaded.records[side]
            if record.cell.id == cell and record.outcome == "ok"
        ]
        for side in SIDES
    }


def _of_cell(seen: Mapping[SideName, Sequence[Seen]], sitting: Sitting) -> Iterator[tuple[Kind, str]]:
    findings = {side: {one.code: one for _, record in seen[side] for one in lint(record)} for side in SIDES}
    for side, other in itertools.permutations(SIDES):
        for code in findings[side].keys() - findings[other].keys():
            impossible = findings[side][code]
            yield impossible.doubts, f"the {side} reports what cannot be: {impossible.sentence}"
        yield from _more_seen(side, seen[side], timed=not sitting.by_steps)
    yield from _other_tokens(seen)
    if sitting.by_itself:
        yield from _more_memory(seen)


def _more_seen(side: SideName, runs: Sequence[Seen], *, timed: bool) -> Iterator[tuple[Kind, str]]:
    """Find a side that tells of less time, in each of its runs, or memory, in any, than the gate saw."""
    told_s = max(record.total_ns for _, record in runs) / NS_PER_SECOND
    hidden_s = min(((run.seen_ns or 0) - record.total_ns) / NS_PER_SECOND for run, record in runs)
    if timed and hidden_s > _SLACK_S + _SLACK_TIME_SHARE * told_s:
        more = f"{hidden_s:.1f} s more by the gate's clock"
        yield "speed", f"the {side} says that a run took {told_s:.1f} s, and it took {more}"
    for run, record in runs:
        told = max((phase.host_peak_bytes or 0 for phase in record.measurement.phases), default=0)
        if told and (run.seen_peak_bytes or 0) > told * (1 + _SLACK_SHARE) + _SLACK_BYTES:
            held = (
                f"held {told / GIB:.2f} GiB at most, and the gate saw {(run.seen_peak_bytes or 0) / GIB:.2f}"
            )
            yield "memory", f"the {side} says that its process {held}"


def _other_tokens(seen: Mapping[SideName, Sequence[Seen]]) -> Iterator[tuple[Kind, str]]:
    """Find sides that count other tokens in the same steps; what a script trains on is its own affair."""
    if seen["base"][0][1].cell.loop.driver == "script":
        return
    before, after = (
        [step.tokens.non_padding for step in seen[side][0][1].measurement.steps] for side in SIDES
    )
    for index, (one, other) in enumerate(zip(before, after, strict=False)):
        if one != other:
            yield (
                "speed",
                f"the sides count other tokens in the same batch: {one:,} and {other:,} in step {index}",
            )
            return


def _more_memory(seen: Mapping[SideName, Sequence[Seen]]) -> Iterator[tuple[Kind, str]]:
    """Find a candidate whose process grew by more than its own ledger tells."""
    peaks = {side: [run.seen_peak_bytes for run, _ in seen[side] if run.seen_peak_bytes] for side in SIDES}
    ledgers = {side: [record.measurement.ledger for _, record in seen[side]] for side in SIDES}
    told = [max((each.peak_bytes for each in ledgers[side] if each), default=0) for side in SIDES]
    if all(peaks.values()):
        grown = min(peaks["candidate"]) - max(peaks["base"])
        counted = told[1] - told[0]
        if grown - counted > _SLACK_BYTES + max(peaks["base"]) - min(peaks["base"]):
            seen_more = f"holds {grown / MIB:,.0f} MiB more than the base's, as the gate saw it"
            yield (
                "ledger",
                f"the candidate's process {seen_more}, and by its ledger {counted / MIB:+,.0f} MiB",
            )


def doubts_of(metric: Metric) -> tuple[Kind, ...]:
    """Return the kinds of number a metric is, of those that can be doubted."""
    if metric.name in BY_STEP:
        return ("speed",)
    if metric.unit == "mJ":
        return ("energy",)
    if metric.unit.startswith("bytes"):
        return ("memory", "ledger") if metric.instrument == "ledger" else ("memory",)
    return ()


def outside_the_window(loaded: SittingRecords) -> Iterator[Caveat]:
    """Yield cells whose candidate takes longer by the gate's clock, before or after the measured steps."""

    def outside_s(seen: Sequence[Seen]) -> Iterator[float]:
        for run, record in seen:
            if run.seen_ns is not None:
                steps_ns = sum(step.step_time_ns for step in record.measurement.measured_steps)
                yield (run.seen_ns - steps_ns) / NS_PER_SECOND

    for cell in loaded.sitting.cells:
        base, candidate = ([*outside_s(seen)] for seen in _good_runs(loaded, cell).values())
        if min(len(base), len(candidate)) < 2:  # noqa: PLR2004 - one run tells nothing of how they spread
            continue
        before_s, after_s = max(base), min(candidate)
        if after_s > before_s * (1 + _SLACK_TIME_SHARE) + 1:
            message = (
                f"Outside the measured steps of {cell} the candidate takes {after_s - before_s:.1f} s longer "
                "by the gate's clock: importing, loading and saving are not gated."
            )
            yield Caveat("slower-outside", message)


def unseen(policies: Iterable[MetricPolicy], varying: Sequence[MetricSamples], rule: Rule) -> tuple[str, ...]:
    """Return for each gated metric the smallest change for the worse that was found with 95 % here.

    By the spread of these runs alone, of the cell that spreads most.
    """
    lines = []
    tests = sum(len(each.pairs) for each in varying if each.policy.gated)
    for samples in varying:
        if samples.policy.gated and samples.pairs:
            share = max(_detectable(samples, cell, rule, tests) for cell in range(len(samples.pairs)))
            name = samples.policy.metric.name
            lines.append(
                f"{name}: any change" if math.isinf(share) else f"{name}: less than {percent(share)}"
            )
    lines += [
        f"{policy.metric.name}: less than {policy.tolerated_text}"
        for policy in policies
        if policy.metric.exact and policy.tolerated_text
    ]
    return tuple(lines)


def _detectable(samples: MetricSamples, cell: int, rule: Rule, tests: int) -> float:
    runs = samples.total
    if runs.differences is not None:
        groups: list[Sequence[float]] = [runs.differences[cell]]
    else:
        groups = [[run for session in runs.baseline[cell] for run in session], runs.candidate[cell]]
    repeats = min(map(len, groups))
    by_pairs = runs.differences is not None
    known = calibrate(groups)
    if repeats < 2 or not known.degrees_of_freedom:  # noqa: PLR2004 - one run tells no spread
        return math.inf
    variance = known.log_variance / 2 if by_pairs else known.log_variance
    noise = Noise(log_variance=variance, degrees_of_freedom=0, of_pairs=by_pairs)
    return detectable_effect(noise, repeats, rule, tests=max(1, tests))
