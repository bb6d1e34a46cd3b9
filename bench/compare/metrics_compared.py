"""Metrics over the cells of a comparison: exact ones, and those that vary between runs.

Interleaved sides of one session are told apart by their runs. Stored results are held against what days
differ by, which takes ten sessions; with fewer, figures are shown and nothing is decided.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median

import numpy as np

from bench.compare.run_pairs import Pair
from bench.records.run_summary import BY_STEP, RunSummary
from bench.records.verdicts import Interval, MetricVerdict
from bench.stats.noise import (
    FEWEST_RUNS,
    Evidence,
    Noise,
    against_sessions,
    centre,
    moments_of_arms,
    pad,
    too_few_runs,
    weigh,
)
from bench.stats.sequential import Block, Decided, MetricPolicy, Rule, decide, follow, holm
from bench.stats.trend import Floats, settle_cells, step_ratios
from bench.stats.verdicts import judge_exact, judge_statistical

NoiseOf = Callable[[str, str], Noise]
"""The calibrated noise of (digest of a cell, metric)."""

_UNKNOWN = Noise(log_variance=0.0, degrees_of_freedom=0)


@dataclass(frozen=True, kw_only=True)
class MetricSamples:
    """One metric of the cells that have it on both sides: log summaries of runs, positive being worse.

    The baseline's are by session. ``differences`` are those of runs made step by step in turn, by repeat;
    None where runs had the machine to themselves. ``drifts`` are the shares by which steps of cells still
    drifted after half of them were left out.
    """

    policy: MetricPolicy
    pairs: tuple[Pair, ...]
    baseline: tuple[tuple[tuple[float, ...], ...], ...]
    candidate: tuple[tuple[float, ...], ...]
    differences: tuple[tuple[float, ...], ...] | None
    drifts: dict[str, float]

    @cached_property
    def baseline_runs(self) -> Floats:
        """All runs of the baseline, a row for each cell."""
        return pad([[run for session in sessions for run in session] for sessions in self.baseline])

    @cached_property
    def candidate_runs(self) -> Floats:
        """The candidate's runs, a row for each cell."""
        return pad(self.candidate)

    def judge(
        self,
        decided: Decided,
        rule: Rule,
        notes: Sequence[str | None] = (),
        intervals: Sequence[Interval] = (),
    ) -> list[MetricVerdict]:
        """Return the verdict on each cell; ``notes`` and ``intervals`` as ``judge_statistical`` has them."""
        return judge_statistical(
            [pair.cell_id for pair in self.pairs],
            self.policy,
            decided,
            rule,
            baseline=centre(self.baseline_runs),
            candidate=centre(self.candidate_runs),
            notes=notes,
            intervals=intervals,
        )


def samples_of(policy: MetricPolicy, pairs: Sequence[Pair], *, by_steps: bool = False) -> MetricSamples:
    """Return the summaries of the runs of comparable cells, once their steps have settled.

    ``by_steps`` says that the sides took turns at steps; metrics that have one for each are then compared so.
    """
    name, sign = policy.metric.name, policy.worse_sign
    there, samples = [], []
    for pair in pairs:
        before = [
            [run.samples[name] for run in session if name in run.samples] for session in pair.sessions_ok
        ]
        after = [run.samples[name] for run in pair.candidate_ok if name in run.samples]
        if any(before) and after:
            there.append(pair)
            samples.append((before, after))
    settled = settle_cells(
        [[run for session in (*before, after) for run in session] for before, after in samples]
    )
    baseline, candidate = [], []
    for (before, _), cell in zip(samples, settled, strict=True):
        signed = iter([sign * summary for summary in cell.log_medians])
        baseline.append(tuple(tuple(next(signed) for _ in session) for session in before))
        candidate.append(tuple(signed))
    differences = None
    if by_steps and name in BY_STEP:
        settled = settle_cells(
            [step_ratios([run for session in before for run in session], after) for before, after in samples]
        )
        differences = tuple(tuple(sign * each for each in cell.log_medians) for cell in settled)
    return MetricSamples(
        policy=policy,
        pairs=tuple(there),
        baseline=tuple(baseline),
        candidate=tuple(candidate),
        differences=differences,
        drifts={
            pair.cell_id: float(np.expm1(cell.drift_log))
            for pair, cell in zip(there, settled, strict=True)
            if not cell.steady
        },
    )


def has_metric(run: RunSummary, policy: MetricPolicy) -> bool:
    """Tell whether a run measured a metric."""
    if policy.metric.kind == "paired":
        return any(f"accuracy_{answers.when}" == policy.metric.name for answers in run.answers)
    return run.values.get(policy.metric.name) is not None


def not_comparable(policy: MetricPolicy, pair: Pair, reason: str) -> MetricVerdict:
    """Return that a metric cannot be compared, with what each side measured of it."""
    baseline, candidate = (_middle(policy, runs) for runs in (pair.baseline_ok, pair.candidate_ok))
    return policy.verdict(pair.cell_id, "not comparable", reason, baseline=baseline, candidate=candidate)


def _middle(policy: MetricPolicy, runs: Sequence[RunSummary]) -> float | None:
    values = [value for run in runs if (value := run.values.get(policy.metric.name)) is not None]
    return float(median(values)) if values else None


def judge_exactly(policy: MetricPolicy, pairs: Sequence[Pair]) -> Iterator[MetricVerdict]:
    """Yield the verdicts on a deterministic metric, of pairs with good runs that have it."""
    name = policy.metric.name
    for pair in pairs:
        before = [run.values.get(name) for run in pair.baseline_ok]
        after = [run.values.get(name) for run in pair.candidate_ok]
        if any(value is not None for value in (*before, *after)) and before and after:
            yield judge_exact(pair.cell_id, policy, before, after)


def one_sided(policy: MetricPolicy, pairs: Sequence[Pair], samples: MetricSamples) -> Iterator[MetricVerdict]:
    """Yield a verdict on each pair with good runs on both sides, of which one lacks the metric."""
    judged = {pair.cell_id for pair in samples.pairs}
    for pair in pairs:
        if pair.cell_id in judged or not (pair.baseline_ok and pair.candidate_ok):
            continue
        before, after = (
            any(has_metric(run, policy) for run in runs) for runs in (pair.baseline_ok, pair.candidate_ok)
        )
        if before != after:
            lacking = "candidate" if before else "baseline"
            yield not_comparable(policy, pair, f"not measured in the {lacking}")


def judge_session(
    gated: Sequence[MetricSamples],
    shown: Sequence[MetricSamples],
    rule: Rule,
    noise_of: NoiseOf | None,
    others: Floats,
) -> tuple[list[MetricVerdict], Floats]:
    """Judge the sides of one session; return also the adjusted p-values of ``others``, looked at once.

    ``shown`` metrics are not gated: each is a family of its own.
    """
    followed = follow([_block(samples, noise_of) for samples in gated], rule, others)
    alone = [follow([_block(samples, noise_of)], rule).blocks[0] for samples in shown]
    verdicts = [
        verdict
        for samples, decided in zip((*gated, *shown), (*followed.blocks, *alone), strict=True)
        for verdict in samples.judge(decided, rule)
    ]
    return verdicts, followed.other_family_p_values


def _block(samples: MetricSamples, noise_of: NoiseOf | None) -> Block:
    name = samples.policy.metric.name
    noises = [_UNKNOWN if noise_of is None else noise_of(pair.digest, name) for pair in samples.pairs]
    return Block(
        baseline=samples.baseline_runs,
        candidate=samples.candidate_runs,
        differences=None if samples.differences is None else pad(samples.differences),
        calibration_variance=np.array([noise.log_variance for noise in noises]),
        calibration_degrees=np.array([float(noise.degrees_of_freedom) for noise in noises]),
        tolerance_log=np.full(len(noises), samples.policy.tolerance_log),
    )


def judge_stored(
    gated: Sequence[MetricSamples], shown: Sequence[MetricSamples], rule: Rule, others: Floats
) -> tuple[list[MetricVerdict], Floats]:
    """Judge stored results, looked at once; cells with too few sessions are undecided and in no family."""
    once = replace(rule, looks=rule.looks[-1:])
    weighed = [_against_baseline(samples) for samples in gated]
    tested = [np.array([note is None for note in notes], dtype=np.bool_) for _, notes in weighed]
    p_values = [evidence.p_value()[use] for (evidence, _), use in zip(weighed, tested, strict=True)]
    *adjusted, other = np.split(holm(np.concatenate([*p_values, others])), np.cumsum([*map(len, p_values)]))
    verdicts: list[MetricVerdict] = []
    for samples, (evidence, notes), use, own in zip(gated, weighed, tested, adjusted, strict=True):
        family = np.ones(len(samples.pairs))
        family[use] = own
        verdicts += _judge_stored(samples, evidence, notes, family, once)
    for samples in shown:
        evidence, notes = _against_baseline(samples)
        verdicts += _judge_stored(samples, evidence, notes, holm(evidence.p_value()), once)
    return verdicts, other


def _judge_stored(
    samples: MetricSamples, evidence: Evidence, notes: Sequence[str | None], family: Floats, rule: Rule
) -> list[MetricVerdict]:
    decided = Decided(
        decisions=decide(evidence, family, rule, np.full(len(samples.pairs), samples.policy.tolerance_log)),
        evidence=evidence,
        family_p_values=family,
        repeats=np.array([len(runs) for runs in samples.candidate], dtype=np.int64),
        needed=np.zeros(len(samples.pairs), dtype=np.int64),  # ten sessions are more than enough
    )
    # The advice that belongs to repeats within a session would mislead here.
    undecided = [
        f"within what {len(sessions)} sessions of the baseline differ by, the change may or may not be "
        "there; `bench gate SCENARIO --base REF` compares the two in one session"
        for sessions in samples.baseline
    ]
    said = [
        note or ("" if decision else advice)
        for note, decision, advice in zip(notes, decided.decisions.tolist(), undecided, strict=True)
    ]
    return samples.judge(decided, rule, said, ["runs" if note else "sittings" for note in notes])


def _against_baseline(samples: MetricSamples) -> tuple[Evidence, list[str | None]]:
    """Return the evidence against past sessions; where there are too few, against the runs, and why."""
    notes = [
        too_few_runs(sessions, runs)
        for sessions, runs in zip(samples.baseline, samples.candidate, strict=True)
    ]
    means = pad(
        [
            [sum(runs) / len(runs) for runs in sessions if runs and (len(runs) >= FEWEST_RUNS or note)]
            for sessions, note in zip(samples.baseline, notes, strict=True)
        ]
    )
    before, after = samples.baseline_runs, samples.candidate_runs
    repeats = np.full(len(samples.pairs), max(before.shape[-1], after.shape[-1]))
    nothing = np.zeros(len(samples.pairs))
    of_runs = weigh(moments_of_arms(before, after, repeats), nothing, nothing, neighbours=False)
    enough = np.array([note is None for note in notes], dtype=np.bool_)
    return against_sessions(means, centre(after)).where(enough, of_runs), notes
