"""Metrics over the cells of a comparison: exact ones, and those that vary between runs.

Interleaved sides of one session are told apart by their runs. Stored results are held against what days
differ by, which takes ten sessions; with fewer, figures are shown and nothing is decided.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter
from statistics import median

import numpy as np

from bench.compare.run_pairs import Pair
from bench.records.derived_metrics import Samples, over_window
from bench.records.run_summary import BY_STEP, RunSummary
from bench.records.sessions import Calibration
from bench.records.verdicts import Interval, MetricVerdict
from bench.stats import noise
from bench.stats.chance import Rule, chance_of_order, holm
from bench.stats.sequential import Arms, Block, Decided, MetricPolicy, decided_stored, follow
from bench.stats.trend import Floats, Settled, settle_cells, step_ratios
from bench.stats.verdicts import judge_exact, judge_statistical

_UNKNOWN = noise.Noise(log_variance=0.0, degrees_of_freedom=0)


@dataclass(frozen=True, kw_only=True)
class Summaries:
    """One log summary of each run of the cells, positive being worse; the baseline's are by session.

    ``differences`` are those of runs made step by step in turn, by repeat; None where runs had the machine to
    themselves.
    """

    baseline: tuple[tuple[tuple[float, ...], ...], ...]
    candidate: tuple[tuple[float, ...], ...]
    differences: tuple[tuple[float, ...], ...] | None

    @cached_property
    def arms(self) -> tuple[Floats, Floats]:
        """All runs of the baseline and of the candidate, a row for each cell."""
        baseline = [[run for session in sessions for run in session] for sessions in self.baseline]
        return noise.pad(baseline), noise.pad(self.candidate)


@dataclass(frozen=True, kw_only=True)
class MetricSamples:
    """One metric of the cells that have it on both sides: over all steps of each run, and its median step.

    There is no median of what has no steps. ``drifts`` are the shares by which steps of cells still drifted
    after half of them were left out.
    """

    policy: MetricPolicy
    pairs: tuple[Pair, ...]
    total: Summaries
    median: Summaries | None
    drifts: dict[str, float]

    def judge(
        self,
        decided: Decided,
        rule: Rule,
        notes: Sequence[str | None] = (),
        intervals: Sequence[Interval] = (),
    ) -> list[MetricVerdict]:
        """Return the verdict on each cell; ``notes`` and ``intervals`` as ``judge_statistical`` has them."""
        baseline, candidate = map(noise.centre, self.total.arms)
        means = {"baseline": baseline, "candidate": candidate}
        cells = [pair.cell_id for pair in self.pairs]
        return judge_statistical(cells, self.policy, decided, rule, **means, notes=notes, intervals=intervals)


_Sides = tuple[Sequence[Sequence[Samples]], Sequence[Samples]]
"""The runs of one cell: the baseline's by session, and the candidate's."""


def samples_of(policy: MetricPolicy, pairs: Sequence[Pair], *, by_steps: bool = False) -> MetricSamples:
    """Return the summaries of the runs of comparable cells.

    ``by_steps`` says that the sides took turns at steps; metrics that have one for each are then compared so.
    """
    name = policy.metric.name

    def measured(runs: Sequence[RunSummary]) -> list[Samples]:
        return [run.samples for run in runs if run.outcome == "ok" and name in run.samples]

    found = [(pair, ([measured(runs) for runs in pair.sessions], measured(pair.candidate))) for pair in pairs]
    there = [(pair, sides) for pair, sides in found if any(sides[0]) and sides[1]]
    of_cells = [sides for _, sides in there]
    in_turn = by_steps and name in BY_STEP
    total, _ = _summaries(policy, of_cells, lambda run: (over_window(run, name),), in_turn=in_turn)
    median, settled = _summaries(policy, of_cells, itemgetter(name), in_turn=in_turn)
    drifts = {
        pair.cell_id: float(np.expm1(cell.drift_log))
        for (pair, _), cell in zip(there, settled, strict=True)
        if not cell.steady
    }
    return MetricSamples(
        policy=policy,
        pairs=tuple(pair for pair, _ in there),
        total=total,
        median=median if name in BY_STEP else None,
        drifts=drifts,
    )


def _summaries(
    policy: MetricPolicy,
    cells: Sequence[_Sides],
    read: Callable[[Samples], Sequence[float]],
    *,
    in_turn: bool,
) -> tuple[Summaries, tuple[Settled, ...]]:
    """Return log summaries of what ``read`` takes of each run, once it has settled, and how it did."""
    sign = policy.worse_sign
    runs_of = [
        ([read(run) for session in sessions for run in session], list(map(read, after)))
        for sessions, after in cells
    ]
    settled = settle_cells([[*before, *after] for before, after in runs_of])
    baseline, candidate, differences = [], [], None
    for (sessions, _), cell in zip(cells, settled, strict=True):
        signed = iter([sign * summary for summary in cell.log_medians.tolist()])
        baseline.append(tuple(tuple(next(signed) for _ in session) for session in sessions))
        candidate.append(tuple(signed))
    if in_turn:
        settled = settle_cells([step_ratios(before, after) for before, after in runs_of])
        differences = tuple(tuple(sign * each for each in cell.log_medians.tolist()) for cell in settled)
    summaries = Summaries(baseline=tuple(baseline), candidate=tuple(candidate), differences=differences)
    return summaries, settled


def has_metric(run: RunSummary, policy: MetricPolicy) -> bool:
    if policy.metric.kind == "paired":
        return any(f"accuracy_{answers.when}" == policy.metric.name for answers in run.answers)
    return run.values.get(policy.metric.name) is not None


def not_comparable(policy: MetricPolicy, pair: Pair, reason: str) -> MetricVerdict:
    """Return that a metric cannot be compared, with what each side measured of it."""
    read = (
        [value for run in runs if (value := run.values.get(policy.metric.name)) is not None]
        for runs in (pair.baseline_ok, pair.candidate_ok)
    )
    baseline, candidate = (float(median(values)) if values else None for values in read)
    return policy.verdict(pair.cell_id, "not comparable", reason, baseline=baseline, candidate=candidate)


def judge_exactly(policy: MetricPolicy, pairs: Sequence[Pair]) -> Iterator[MetricVerdict]:
    """Yield the verdicts on an exact metric, of pairs with good runs that have it."""
    for pair in pairs:
        before, after = (
            [run.values.get(policy.metric.name) for run in runs]
            for runs in (pair.baseline_ok, pair.candidate_ok)
        )
        measured = [any(value is not None for value in side) for side in (before, after)]
        if not (before and after):
            continue  # said of the outcome
        if policy.metric.since and measured == [False, True]:
            reason = "new: the baseline's finetune-bench did not measure it, so it is not judged"
            yield replace(not_comparable(policy, pair, reason), gated=False)
        elif any(measured):
            yield judge_exact(pair.cell_id, policy, before, after)


def one_sided(samples: MetricSamples, pairs: Sequence[Pair]) -> Iterator[MetricVerdict]:
    """Yield a verdict on each pair with good runs on both sides, of which one lacks the metric."""
    judged, policy = {pair.cell_id for pair in samples.pairs}, samples.policy
    for pair in pairs:
        sides = pair.baseline_ok, pair.candidate_ok
        if pair.cell_id not in judged and all(sides):
            before, after = (any(has_metric(run, policy) for run in runs) for runs in sides)
            if before != after:
                lacking = "candidate" if before else "baseline"
                yield not_comparable(policy, pair, f"not measured in the {lacking}")


def judge_session(
    gated: Sequence[MetricSamples],
    shown: Sequence[MetricSamples],
    rule: Rule,
    calibration: Calibration | None,
    others: Floats,
) -> tuple[list[MetricVerdict], Floats]:
    """Judge the sides of one session; return also the adjusted p-values of ``others``, looked at once.

    ``shown`` metrics are not gated: each is a family of its own.
    """
    followed = follow([_block(samples, calibration) for samples in gated], rule, others)
    alone = [follow([_block(samples, calibration)], rule).blocks[0] for samples in shown]
    decided = zip((*gated, *shown), (*followed.blocks, *alone), strict=True)
    verdicts = [verdict for samples, found in decided for verdict in samples.judge(found, rule)]
    return verdicts, followed.other_family_p_values


def _block(samples: MetricSamples, calibration: Calibration | None) -> Block:
    def arms(summaries: Summaries, *, total: bool) -> Arms:
        name, (baseline, candidate) = samples.policy.metric.name, summaries.arms
        known = [
            noise.noise_of(calibration, pair.digest, name, total=total) if calibration else _UNKNOWN
            for pair in samples.pairs
        ]
        return Arms(
            baseline=baseline,
            candidate=candidate,
            differences=None if summaries.differences is None else noise.pad(summaries.differences),
            calibration_variance=np.array([one.log_variance for one in known]),
            calibration_degrees=np.array([float(one.degrees_of_freedom) for one in known]),
        )

    return Block(
        total=arms(samples.total, total=True),
        median=None if samples.median is None else arms(samples.median, total=False),
        tolerance_log=np.full(len(samples.pairs), samples.policy.tolerance_log),
    )


def judge_stored(
    gated: Sequence[MetricSamples], shown: Sequence[MetricSamples], rule: Rule, others: Floats
) -> tuple[list[MetricVerdict], Floats]:
    """Judge stored results, looked at once; cells with too few sessions are undecided and in no family."""
    found = [(samples, *_against_baseline(samples)) for samples in gated]
    tested = [np.array([note is None for note in notes], dtype=np.bool_) for _, _, _, notes in found]
    p_values = [own[use] for (_, _, own, _), use in zip(found, tested, strict=True)]
    *adjusted, other = np.split(holm(np.concatenate([*p_values, others])), np.cumsum([*map(len, p_values)]))
    tests = sum(map(len, (*p_values, others)))
    verdicts: list[MetricVerdict] = []
    for (samples, evidence, _, notes), use, own in zip(found, tested, adjusted, strict=True):
        family = np.ones(len(use))
        family[use] = own
        verdicts += _judge_stored(samples, evidence, notes, family, rule, tests)
    for samples in shown:
        evidence, p_value, notes = _against_baseline(samples)
        verdicts += _judge_stored(samples, evidence, notes, holm(p_value), rule, len(p_value))
    return verdicts, other


def _judge_stored(  # noqa: PLR0917 - what was found, and the promise
    samples: MetricSamples,
    evidence: noise.Evidence,
    notes: Sequence[str | None],
    family: Floats,
    rule: Rule,
    tests: int,
) -> list[MetricVerdict]:
    once = replace(rule, looks=rule.looks[-1:])
    tolerance = np.full(len(samples.pairs), samples.policy.tolerance_log)
    decided = decided_stored(evidence, family, once, tolerance)
    decided = replace(decided, repeats=np.array([len(runs) for runs in samples.total.candidate]))
    said = [
        note or ("" if decision else _undecided(len(sessions), tests, rule, slower=worse))
        for note, decision, worse, sessions in zip(
            notes,
            decided.decisions.tolist(),
            (decided.lower > rule.minimum_effect_log).tolist(),
            samples.total.baseline,
            strict=True,
        )
    ]
    return samples.judge(decided, once, said, ["runs" if note else "sittings" for note in notes])


def _undecided(sessions: int, tests: int, rule: Rule, *, slower: bool) -> str:
    """Say why a new session is undecided. Advice that belongs to repeats within a session would mislead."""
    if not slower:
        return (
            f"within what {sessions} sessions of the baseline differ by, the change may or may not be there; "
            "`bench gate SCENARIO --base REF` compares the two in one session"
        )
    return (
        f"slower than {sessions} sessions of the baseline differ, but one day in {sessions + 1} is the "
        f"slowest by chance: to rule that out takes {math.ceil(tests / rule.alpha) - 1} sessions; "
        "`bench gate SCENARIO --base REF` compares the two in one session"
    )


def _against_baseline(samples: MetricSamples) -> tuple[noise.Evidence, Floats, list[str | None]]:
    """Return the evidence against past sessions and its p-values; where there are too few, against the runs.

    However rare a session's mean would be by what the others differ by, it was the slowest of so many days.
    """
    cells = list(zip(samples.total.baseline, samples.total.candidate, strict=True))
    notes = [noise.too_few_runs(sessions, runs) for sessions, runs in cells]
    means = noise.pad(
        [
            [sum(runs) / len(runs) for runs in sessions if runs and (len(runs) >= noise.FEWEST_RUNS or note)]
            for sessions, note in zip(samples.total.baseline, notes, strict=True)
        ]
    )
    before, after = samples.total.arms
    repeats = np.full(len(cells), max(before.shape[-1], after.shape[-1], means.shape[-1]))
    nothing = np.zeros(len(cells))
    of_runs = noise.weigh(noise.moments_of_arms(before, after, repeats), nothing, nothing)
    enough = np.array([note is None for note in notes], dtype=np.bool_)
    today = noise.centre(after)
    evidence = noise.against_sessions(means, today).where(enough, of_runs)
    by_day = chance_of_order(means, today[:, np.newaxis], repeats)
    return evidence, np.maximum(evidence.p_value(), by_day), notes
