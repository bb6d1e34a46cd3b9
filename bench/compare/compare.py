"""Two sides of a comparison as one document of verdicts: `bench compare`, and both kinds of `bench gate`.

Calls what judges each kind of metric and adjusts for all of them together. Reads and shows nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

from msgspec import structs

from bench.compare.compare_accuracy import Change, changes, judge_changes, p_values
from bench.compare.compare_pairs import Pair, ended_ok, pair_up
from bench.compare.compare_speed import Arms, NoiseOf, Unsettled, arms_of, judge_sitting, judge_stored
from bench.compare.environments import facts
from bench.metrics import METRICS
from bench.records.run_facts import CARD_CONDITIONS, RunFacts
from bench.records.stored import Caveat
from bench.records.verdicts import WORST_FIRST, ComparedSide, Design, Interval, Judged, Kind, Verdicts
from bench.scenario.gate import GateSpec
from bench.stats.exact import judge_exact, judge_outcomes
from bench.stats.policy import MetricPolicy, policies, rule_of
from bench.stats.sequential import holm
from bench.stats.verdicts import Judgement, overall

_NAMED_CELLS = 5
_ORDER = {verdict: place for place, verdict in enumerate(WORST_FIRST)}


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one side is called and its runs by sitting, each in the order run."""

    given: str
    sittings: tuple[tuple[RunFacts, ...], ...]
    problems: tuple[str, ...] = ()

    @property
    def runs(self) -> tuple[RunFacts, ...]:
        """All its runs."""
        return tuple(run for sitting in self.sittings for run in sitting)


@dataclass(frozen=True, kw_only=True)
class HowToJudge:
    """The rules, and what is known of the runs.

    ``design`` *one sitting* (also *by steps*) is for sides that ran in turn; ``looks`` are then the repeats
    after which it could end.
    """

    gate: GateSpec
    design: Design
    looks: tuple[int, ...] | None = None
    noise_of: NoiseOf | None = None
    caveats: tuple[Caveat, ...] = ()

    @property
    def one_sitting(self) -> bool:
        """Whether both sides were measured in one."""
        return self.design in {"one sitting", "one sitting by steps"}


def compare_sides(baseline: Side, candidate: Side, how: HowToJudge) -> Verdicts:
    """Return every verdict on the candidate against the baseline."""
    pairs = pair_up(baseline.sittings, candidate.runs)
    judged, drifting = _judge(pairs, how)
    judged.sort(key=lambda one: (not one.gated, _ORDER[one.verdict], -_size(one)))
    return Verdicts(
        design=how.design,
        scenarios=tuple(dict.fromkeys(run.cell.scenario for run in candidate.runs if run.cell.scenario)),
        verdict=overall(judged),
        alpha=how.gate.alpha,
        baseline=_described(baseline),
        candidate=_described(candidate),
        differences=tuple(_differences(baseline.runs, candidate.runs)),
        failed_cells=tuple(pair.cell_id for pair in pairs if pair.failed),
        judgements=tuple(judged),
        caveats=(*how.caveats, *_left_out(baseline, candidate, pairs), *_unsettled(drifting)),
        problems=(*baseline.problems, *candidate.problems),
    )


def _judge(pairs: Sequence[Pair], how: HowToJudge) -> tuple[list[Judged], tuple[Unsettled, ...]]:
    """Judge all metrics: those with a p-value together, as one family."""
    judged = [_outcome(pair, how) for pair in pairs]
    found: list[Change] = []
    gated: list[Arms] = []
    shown: list[Arms] = []
    drifting: tuple[Unsettled, ...] = ()
    both = [pair for pair in pairs if pair.baseline and pair.candidate]
    for policy in policies(how.gate).values():
        comparable, refused = _sorted_out(policy, both)
        judged += [_stored(one, policy.metric.kind) for one in refused]
        if policy.metric.kind == "deterministic":
            judged += _exact(policy, comparable)
        elif policy.metric.kind == "paired":
            found += changes(policy, comparable)
        else:
            arms, unsettled = arms_of(policy, comparable, by_steps=how.design == "one sitting by steps")
            judged += [_stored(one, "statistical") for one in _one_sided(policy, comparable, arms)]
            (gated if policy.gated else shown).append(arms)
            if policy.gated:
                drifting += unsettled
    judged += _judged_by_chance(found, [a for a in gated if a.pairs], [a for a in shown if a.pairs], how)
    return judged, drifting


def _judged_by_chance(
    found: Sequence[Change], gated: Sequence[Arms], shown: Sequence[Arms], how: HowToJudge
) -> Iterator[Judged]:
    """Yield the judgements on speed and accuracy. What is gated of both is one family."""
    rule = rule_of(how.gate)
    tested = [change for change in found if change.policy.gated]
    others = [change for change in found if not change.policy.gated]
    if how.one_sitting:
        rule = replace(rule, looks=how.looks or rule.looks)
        speed = judge_sitting(gated, shown, rule, how.noise_of, p_values(tested))
    else:
        speed = judge_stored(gated, shown, rule, p_values(tested))
    for one in speed.judgements:
        yield _stored(one, "statistical", interval="sittings" if one.cell in speed.by_sittings else "runs")
    answered = [
        *judge_changes(tested, speed.other_family_p_values, how.gate),
        *judge_changes(others, holm(p_values(others)), how.gate),
    ]
    for one in answered:
        yield _stored(one, "paired", interval="questions")


def _outcome(pair: Pair, how: HowToJudge) -> Judged:
    """Judge how a cell's runs ended; what the baseline lacks or neither side ever ran is only listed."""
    before, after = ([run.outcome for run in runs] for runs in (pair.baseline, pair.candidate))
    judgement = judge_outcomes(pair.cell_id, before, after)
    if not before and not how.one_sitting:
        reason = "new: the baseline has no run of it, so it is not judged"
        judgement = structs.replace(judgement, gated=False, reason=reason)
    elif before and after and pair.never_ran:
        reason = f"neither side ran it ({' and '.join(sorted({*before, *after}))})"
        judgement = structs.replace(judgement, gated=False, reason=reason)
    return _stored(judgement, "outcome")


def _sorted_out(policy: MetricPolicy, pairs: Sequence[Pair]) -> tuple[list[Pair], list[Judgement]]:
    """Return the pairs whose metric can be compared, and a judgement on each other that either side has."""
    comparable, refused = [], []
    for pair in pairs:
        obstacle = pair.obstacle(policy.metric)
        if obstacle is None:
            comparable.append(pair)
        elif any(_has(run, policy) for run in (*pair.baseline, *pair.candidate)):
            refused.append(_not_comparable(policy, pair, obstacle))
    return comparable, refused


def _has(run: RunFacts, policy: MetricPolicy) -> bool:
    if policy.metric.kind == "paired":
        return any(f"accuracy_{answers.when}" == policy.metric.name for answers in run.answers)
    return run.values.get(policy.metric.name) is not None


def _not_comparable(policy: MetricPolicy, pair: Pair, reason: str) -> Judgement:
    return Judgement(
        cell=pair.cell_id,
        metric=policy.metric.name,
        verdict="not comparable",
        gated=policy.gated,
        reason=reason,
        baseline=_middle(policy, pair.baseline),
        candidate=_middle(policy, pair.candidate),
    )


def _middle(policy: MetricPolicy, runs: Sequence[RunFacts]) -> float | None:
    values = [value for run in ended_ok(runs) if (value := run.values.get(policy.metric.name)) is not None]
    return float(median(values)) if values else None


def _exact(policy: MetricPolicy, pairs: Sequence[Pair]) -> Iterator[Judged]:
    name = policy.metric.name
    for pair in pairs:
        before = [run.values.get(name) for run in pair.baseline_ok]
        after = [run.values.get(name) for run in pair.candidate_ok]
        if any(value is not None for value in (*before, *after)) and before and after:
            yield _stored(judge_exact(pair.cell_id, policy, before, after), "deterministic")


def _one_sided(policy: MetricPolicy, pairs: Sequence[Pair], arms: Arms) -> Iterator[Judgement]:
    """Yield a judgement on each pair with good runs on both sides, of which one lacks the metric."""
    judged = {pair.cell_id for pair in arms.pairs}
    for pair in pairs:
        if pair.cell_id in judged or not (pair.baseline_ok and pair.candidate_ok):
            continue
        before, after = (
            any(_has(run, policy) for run in runs) for runs in (pair.baseline_ok, pair.candidate_ok)
        )
        if before != after:
            yield _not_comparable(
                policy, pair, f"not measured in the {'candidate' if before else 'baseline'}"
            )


def _stored(judgement: Judgement, kind: Kind, interval: Interval | None = None) -> Judged:
    """Return a judgement with what its metric is."""
    metric = METRICS.get(judgement.metric)
    return Judged(
        **structs.asdict(judgement),
        kind=kind,
        unit=metric.unit if metric else "",
        instrument=metric.instrument if metric else "",
        interval=interval if judgement.ratio_low is not None or kind == "paired" else None,
    )


def _size(judged: Judged) -> float:
    """Return how large a change is, as a share, to put the largest first."""
    if judged.ratio is not None:
        return abs(judged.ratio - 1)
    return abs(judged.difference or 0.0)


def _described(side: Side) -> ComparedSide:
    facts = _facts(side.runs)
    shared = {name: next(iter(values)) if len(values) == 1 else "several" for name, values in facts.items()}
    return ComparedSide(
        given=side.given, runs=len(side.runs), sittings=len(side.sittings), environment=shared
    )


def _facts(runs: Sequence[RunFacts]) -> dict[str, set[str]]:
    """Return every value of each fact on where runs were made, their commit included."""
    found: dict[str, set[str]] = {}
    for environment in {id(run.environment): run.environment for run in runs}.values():
        for name, value in facts(environment).items():
            found.setdefault(name, set()).add(value)
    for conditions in {run.conditions for run in runs}:
        for name, known in conditions:
            if name in CARD_CONDITIONS and known is not None:
                found.setdefault(f"gpu.{name}", set()).add(str(known))
    return found


def _differences(baseline: Sequence[RunFacts], candidate: Sequence[RunFacts]) -> Iterator[str]:
    """Yield a line for each fact that is not the same on both sides."""
    before, after = _facts(baseline), _facts(candidate)
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) != after.get(name):
            old, new = (" or ".join(sorted(side.get(name, {"not set"}))) for side in (before, after))
            yield f"{name}: {old} before, {new} now"


def _left_out(baseline: Side, candidate: Side, pairs: Sequence[Pair]) -> Iterator[Caveat]:
    used = sum(len(pair.baseline) + len(pair.candidate) for pair in pairs)
    left = len(baseline.runs) + len(candidate.runs) - used
    if left:
        message = f"Left out: {left} runs, with other versions or machines than the latest, or spoilt."
        yield Caveat(code="left-out", message=message)


def _unsettled(drifting: Iterable[Unsettled]) -> Iterator[Caveat]:
    largest: dict[str, float] = {}
    for one in drifting:
        if abs(one.drift_share) > abs(largest.get(one.cell, 0.0)):
            largest[one.cell] = one.drift_share
    named = [f"{cell} ({share:+.1%})" for cell, share in largest.items()]
    if named:
        more = f" and {len(named) - _NAMED_CELLS} more" if len(named) > _NAMED_CELLS else ""
        message = (
            f"Speed still drifted over the last half of the steps: {', '.join(named[:_NAMED_CELLS])}{more}; "
            "raise window.warmup_steps."
        )
        yield Caveat(code="not-steady", message=message)
