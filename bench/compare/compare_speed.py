"""Metrics that vary between runs, over the cells of a comparison: one sitting, or stored results.

Interleaved sides of one sitting are told apart by their runs. Stored results are held against what days
differ by, which takes ten sittings; with fewer, figures are shown and nothing is decided.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from msgspec import structs

from bench.compare.compare_pairs import Pair
from bench.records.run_facts import BY_STEP
from bench.stats.judge import centre, judge_statistical
from bench.stats.moderated import Evidence, Noise, moments_of_arms, pad, weigh
from bench.stats.policy import MetricPolicy
from bench.stats.sequential import Block, Decided, Rule, decide, follow, holm
from bench.stats.settling import Floats, settle_cells, step_ratios
from bench.stats.sittings import FEWEST_RUNS, predict, too_little
from bench.stats.verdicts import Judgement

NoiseOf = Callable[[str, str], Noise]
"""The calibrated noise of (digest of a cell, metric)."""

_INTERLEAVE = "`bench gate SCENARIO --base REF` compares the two in one sitting"


@dataclass(frozen=True, kw_only=True)
class Arms:
    """One metric of the cells that have it on both sides: log summaries of runs, positive being worse.

    ``differences`` are those of runs made step by step in turn, by repeat; None where runs had the machine to
    themselves.
    """

    policy: MetricPolicy
    pairs: tuple[Pair, ...]
    baseline: tuple[tuple[tuple[float, ...], ...], ...]
    candidate: tuple[tuple[float, ...], ...]
    differences: tuple[tuple[float, ...], ...] | None = None

    @property
    def cells(self) -> list[str]:
        """Their ids."""
        return [pair.cell_id for pair in self.pairs]

    @cached_property
    def baseline_runs(self) -> Floats:
        """All runs of the baseline, a row for each cell."""
        return pad([[run for sitting in sittings for run in sitting] for sittings in self.baseline])

    @cached_property
    def candidate_runs(self) -> Floats:
        """The candidate's runs, a row for each cell."""
        return pad(self.candidate)


@dataclass(frozen=True, kw_only=True)
class Unsettled:
    """A cell whose steps still drifted, by this share, after half of them were left out."""

    cell: str
    drift_share: float


def arms_of(
    policy: MetricPolicy, pairs: Sequence[Pair], *, by_steps: bool = False
) -> tuple[Arms, tuple[Unsettled, ...]]:
    """Return the summaries of the runs of comparable cells, and which had not settled.

    ``by_steps`` says that the sides took turns at steps; metrics that have one for each are then compared so.
    """
    name, sign = policy.metric.name, policy.worse_sign
    there, samples = [], []
    for pair in pairs:
        before = [
            [run.samples[name] for run in sitting if name in run.samples] for sitting in pair.sittings_ok
        ]
        after = [run.samples[name] for run in pair.candidate_ok if name in run.samples]
        if any(before) and after:
            there.append(pair)
            samples.append((before, after))
    settled = settle_cells(
        [[run for sitting in (*before, after) for run in sitting] for before, after in samples]
    )
    baseline, candidate = [], []
    for (before, _), cell in zip(samples, settled, strict=True):
        signed = iter([sign * summary for summary in cell.log_medians])
        baseline.append(tuple(tuple(next(signed) for _ in sitting) for sitting in before))
        candidate.append(tuple(signed))
    differences = None
    if by_steps and name in BY_STEP:
        settled = settle_cells(
            [step_ratios([run for sitting in before for run in sitting], after) for before, after in samples]
        )
        differences = tuple(tuple(sign * each for each in cell.log_medians) for cell in settled)
    drifting = tuple(
        Unsettled(cell=pair.cell_id, drift_share=float(np.expm1(cell.drift_log)))
        for pair, cell in zip(there, settled, strict=True)
        if not cell.steady
    )
    arms = Arms(
        policy=policy,
        pairs=tuple(there),
        baseline=tuple(baseline),
        candidate=tuple(candidate),
        differences=differences,
    )
    return arms, drifting


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the metrics that vary came to, and the adjusted p-values of the tests looked at once.

    ``by_sittings`` are the cells that were held against what days differ by.
    """

    judgements: tuple[Judgement, ...]
    by_sittings: frozenset[str] = frozenset()
    other_family_p_values: Floats


def judge_sitting(
    gated: Sequence[Arms], shown: Sequence[Arms], rule: Rule, noise_of: NoiseOf | None, others: Floats
) -> Judged:
    """Judge the sides of one sitting. ``shown`` metrics are not gated: each is a family of its own."""
    blocks = [_block(arms, noise_of) for arms in gated]
    followed = follow(blocks, rule, others)
    alone = [follow([_block(arms, noise_of)], rule).blocks[0] for arms in shown]
    judgements = [
        judgement
        for arms, decided in zip((*gated, *shown), (*followed.blocks, *alone), strict=True)
        for judgement in _judgements(arms, decided, rule)
    ]
    return Judged(judgements=tuple(judgements), other_family_p_values=followed.other_family_p_values)


def _block(arms: Arms, noise_of: NoiseOf | None) -> Block:
    unknown = Noise(log_variance=0.0, degrees_of_freedom=0)
    name = arms.policy.metric.name
    noises = [
        unknown if noise_of is None else noise_of(pair.candidate[-1].cell.digest or "", name)
        for pair in arms.pairs
    ]
    return Block(
        baseline=arms.baseline_runs,
        candidate=arms.candidate_runs,
        differences=None if arms.differences is None else pad(arms.differences),
        calibration_variance=np.array([noise.log_variance for noise in noises]),
        calibration_degrees=np.array([float(noise.degrees_of_freedom) for noise in noises]),
        tolerance_log=np.full(len(noises), arms.policy.tolerance_log),
    )


def _judgements(
    arms: Arms, decided: Decided, rule: Rule, notes: Sequence[str | None] = ()
) -> tuple[Judgement, ...]:
    return judge_statistical(
        arms.cells,
        arms.policy,
        decided,
        rule,
        baseline=centre(arms.baseline_runs),
        candidate=centre(arms.candidate_runs),
        too_little=notes,
    )


def judge_stored(gated: Sequence[Arms], shown: Sequence[Arms], rule: Rule, others: Floats) -> Judged:
    """Judge stored results, looked at once; cells with too few sittings are undecided and in no family."""
    once = replace(rule, looks=rule.looks[-1:])
    weighed = [_against_sittings(arms) for arms in gated]
    tested = [np.array([note is None for note in notes], dtype=np.bool_) for _, notes in weighed]
    p_values = [evidence.p_value()[use] for (evidence, _), use in zip(weighed, tested, strict=True)]
    *adjusted, other = np.split(holm(np.concatenate([*p_values, others])), np.cumsum([*map(len, p_values)]))
    judgements: list[Judgement] = []
    for arms, (evidence, notes), use, own in zip(gated, weighed, tested, adjusted, strict=True):
        family = np.ones(len(arms.pairs))
        family[use] = own
        judgements += _stored_judgements(arms, evidence, notes, family, once)
    for arms in shown:
        evidence, notes = _against_sittings(arms)
        judgements += _stored_judgements(arms, evidence, notes, holm(evidence.p_value()), once)
    by_sittings = frozenset(
        pair.cell_id
        for arms, use in zip(gated, tested, strict=True)
        for pair, enough in zip(arms.pairs, use.tolist(), strict=True)
        if enough
    )
    return Judged(judgements=tuple(judgements), other_family_p_values=other, by_sittings=by_sittings)


def _stored_judgements(
    arms: Arms, evidence: Evidence, notes: Sequence[str | None], family: Floats, rule: Rule
) -> list[Judgement]:
    tolerance = np.full(len(arms.pairs), arms.policy.tolerance_log)
    decided = Decided(
        decisions=decide(evidence, family, rule, tolerance),
        evidence=evidence,
        family_p_values=family,
        repeats=np.array([len(runs) for runs in arms.candidate], dtype=np.int64),
        needed=np.zeros(len(arms.pairs), dtype=np.int64),  # ten sittings are more than enough
    )
    # The advice that belongs to repeats within a sitting would mislead here.
    notes = [
        note or ("" if decision else _undecided(sittings))
        for note, decision, sittings in zip(notes, decided.decisions.tolist(), arms.baseline, strict=True)
    ]
    return [
        structs.replace(judgement, p_value=None)
        if judgement.verdict == "inconclusive" and note
        else judgement
        for judgement, note in zip(_judgements(arms, decided, rule, notes), notes, strict=True)
    ]


def _undecided(sittings: Sequence[Sequence[float]]) -> str:
    return (
        f"within what {len(sittings)} sittings of the baseline differ by, the change may or may not be "
        f"there; {_INTERLEAVE}"
    )


def _against_sittings(arms: Arms) -> tuple[Evidence, list[str | None]]:
    """Return the evidence against past sittings; where there are too few, against the runs, and why."""
    notes = [too_little(sittings, runs) for sittings, runs in zip(arms.baseline, arms.candidate, strict=True)]
    means = pad(
        [
            [sum(runs) / len(runs) for runs in sittings if runs and (len(runs) >= FEWEST_RUNS or note)]
            for sittings, note in zip(arms.baseline, notes, strict=True)
        ]
    )
    of_days = predict(means, centre(arms.candidate_runs))
    runs = np.full(len(arms.pairs), max(arms.baseline_runs.shape[-1], arms.candidate_runs.shape[-1]))
    moments = moments_of_arms(arms.baseline_runs, arms.candidate_runs, runs)
    nothing = np.zeros(len(arms.pairs))
    of_runs = weigh(moments, nothing, nothing, neighbours=False)
    enough = np.array([note is None for note in notes], dtype=np.bool_)
    columns = {
        field.name: np.where(enough, getattr(of_days, field.name), getattr(of_runs, field.name))
        for field in fields(Evidence)
    }
    return Evidence(**columns), notes
