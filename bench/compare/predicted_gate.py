"""Two plans of the same cells judged: what each cell requests, computes and trains, and why that changed.

A prediction does not vary, so nothing is repeated and nothing left to chance: what tensors request, trained
parameters, FLOPs and saved bytes are exact. Reserved memory also depends on the order in which equal programs
allocate and free, so that it is judged only where the bands of the two sides do not meet.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench.compare.caveats import changed, shared
from bench.compare.explained import blind_spots, changed_bytes, explained, phases_told
from bench.errors import UsageError
from bench.io import read_json
from bench.metrics import MIB, size_text
from bench.records.predictions import Plan, PlannedCell, Prediction, Refusal, read_plan
from bench.records.readings import Caveat
from bench.records.sessions import PLAN_FILES, SIDES, SITTING_FILE, SideFacts, Sitting
from bench.records.verdicts import (
    WORST_FIRST,
    ComparedSide,
    MetricVerdict,
    Verdicts,
    outcome_verdict,
    overall,
)
from bench.scenario.gate import GateSpec, MetricGate
from bench.scenario.platform import Platform
from bench.stats.sequential import MetricPolicy, policies
from bench.stats.verdicts import judge_exact

_PEAKS = {"cuda": "cuda_requested_peak_bytes", "cpu": "ledger_peak_bytes"}
_ALLOCATED, _RESERVED = "cuda_allocated_peak_bytes", "cuda_reserved_peak_bytes"
_OWN = {
    # A block just over 1 MiB counts whole where its rest is too small to be split off.
    _ALLOCATED: MetricGate(tolerance=4 * MIB, relative_tolerance=0.001),
    _RESERVED: MetricGate(gated=True),
}
_Place = tuple[str, str, tuple[int, int]]


def judge_predictions(folder: Path) -> Verdicts:
    """Judge a stored session whose sides were predicted, by the gate it was made for."""
    session = read_json(folder / SITTING_FILE, Sitting, "a sitting", "run bench gate --predict again")
    base, candidate = (read_plan(folder / PLAN_FILES[side]) for side in SIDES)
    sides = session.base, session.candidate
    verdicts = judge_plans(base, candidate, session.gate or GateSpec(), sides=sides, caveats=session.caveats)
    verdict = "inconclusive" if verdicts.void else verdicts.verdict
    return verdicts.model_copy(update={"judge": session.judge, "verdict": verdict})


def compare_plans(baseline: Path, candidate: Path, gate: GateSpec) -> Verdicts:
    """Judge a stored plan against another."""
    plans = read_plan(baseline), read_plan(candidate)
    return judge_plans(*plans, gate, sides=(stored_plan(baseline), stored_plan(candidate)))


def stored_plan(path: Path) -> SideFacts:
    """Return what a side is whose plan was made before."""
    return SideFacts(given=str(path), kind="plan", understood=f"the stored plan {path}")


def judge_plans(
    baseline: Plan,
    candidate: Plan,
    gate: GateSpec,
    *,
    sides: tuple[SideFacts, SideFacts],
    caveats: Sequence[Caveat] = (),
) -> Verdicts:
    """Return every verdict on the candidate's plan against the baseline's.

    Raises ``UsageError`` where the two were replayed under different settings of the allocator.
    """
    if baseline.allocator != candidate.allocator:
        settings = " and ".join(plan.allocator or "torch's own" for plan in (baseline, candidate))
        raise UsageError(
            f"the two plans have different allocator settings ({settings}), which move what is reserved; "
            "make both with the same --allocator"
        )
    rules = policies(gate.model_copy(update={"metrics": {**_OWN, **gate.metrics}}))
    before, after = _placed(baseline), _placed(candidate)
    several = len({place[1:] for place in (*before, *after)}) > 1
    verdicts = [
        verdict
        for place in dict.fromkeys([*before, *after])
        for verdict in _judged(_name(place, several=several), before.get(place), after.get(place), rules)
    ]
    verdicts.sort(key=lambda one: (not one.gated, WORST_FIRST.index(one.verdict), bool(one.task), -one.size))
    known = _versions(baseline, sides[0]), _versions(candidate, sides[1])
    first, second = (
        ComparedSide(
            given=side.name, runs=len(cells), understood=side.understood, environment=shared(versions)
        )
        for side, cells, versions in zip(sides, (before, after), known, strict=True)
    )
    return Verdicts(
        design="two plans",
        scenarios=tuple(dict.fromkeys([baseline.scenario, candidate.scenario])),
        verdict=overall(verdicts),
        alpha=0.0,
        baseline=first,
        candidate=second,
        differences=tuple(changed(*known)),
        judgements=tuple(verdicts),
        unseen=tuple(_unseen(rules, verdicts)),
        caveats=(*caveats, *blind_spots([*before.values(), *after.values()])),
    )


def _unseen(rules: Mapping[str, MetricPolicy], verdicts: Iterable[MetricVerdict]) -> Iterator[str]:
    """Yield for each exact metric that was gated what a change for the worse must come to."""
    for name in dict.fromkeys(one.metric for one in verdicts if one.gated and one.kind == "deterministic"):
        if least := rules[name].tolerated_text:
            yield f"{name}: less than {least}"


def _placed(plan: Plan) -> dict[_Place, PlannedCell]:
    """Return a plan's cells by id and by what they were predicted for."""
    platforms = [one.answer.platform or Platform(device=one.cell.device) for one in plan.cells]
    return {
        (one.cell.id, platform.device, platform.capability): one
        for one, platform in zip(plan.cells, platforms, strict=True)
    }


def _name(place: _Place, *, several: bool) -> str:
    cell, device, capability = place
    where = f"sm_{capability[0]}{capability[1]}" if device == "cuda" else "cpu"
    return f"{cell} on {where}" if several else cell


def _versions(plan: Plan, side: SideFacts) -> dict[str, set[str]]:
    """Return the versions that a plan was traced with, what else was installed, and the torch it is for."""
    found: dict[str, set[str]] = {}
    for planned in plan.cells:
        if isinstance(planned.answer, Prediction):
            known = {f"versions.{name}": text for name, text in planned.answer.traced_with.items()}
            for name, text in (known | {"predicted for torch": planned.answer.platform.torch}).items():
                found.setdefault(name, set()).add(text)
    installed = side.environment.versions if side.environment else {}
    beside = {f"versions.{name}": {text} for name, text in installed.items()}
    return beside | found


def _judged(
    name: str, before: PlannedCell | None, after: PlannedCell | None, rules: Mapping[str, MetricPolicy]
) -> Iterator[MetricVerdict]:
    """Yield every verdict on one cell of two plans, each predicted, refused or not there."""
    if before is None or after is None:
        side = "candidate" if after is None else "base"
        reason = f"the plan of the {side} has no such cell; predict it on both sides"
        yield outcome_verdict(name, "not comparable", reason, gated=after is None)
    elif before.cell.digest != after.cell.digest:
        reason = "the two plans describe it otherwise; make both of one scenario"
        yield outcome_verdict(name, "not comparable", reason)
    elif isinstance(before.answer, Prediction) and isinstance(after.answer, Prediction):
        yield from _compared(name, before.answer, after.answer, explained(before, after), rules)
    else:
        yield _refused(name, before.answer, after.answer)


def _refused(name: str, before: Prediction | Refusal, after: Prediction | Refusal) -> MetricVerdict:
    """Judge a refusal. What a library refuses by itself is its own; what we cannot trace says nothing."""
    if isinstance(before, Refusal) and isinstance(after, Refusal):
        reason = f"neither side can be predicted: {after.message}"
        return outcome_verdict(name, "not comparable", reason, gated=False)
    if isinstance(after, Refusal):
        by_library = after.by == "library"
        reason = f"predicted for the base, but not for the candidate: {after.message}"
        return outcome_verdict(name, "regression" if by_library else "inconclusive", reason)
    assert isinstance(before, Refusal)  # noqa: S101 - for the type checker; one of the two is
    reason = f"predicted for the candidate, but not for the base: {before.message}"
    by_library = before.by == "library"
    return outcome_verdict(name, "pass", reason, gated=by_library, improved=by_library)


def _compared(
    name: str, before: Prediction, after: Prediction, why: str, rules: Mapping[str, MetricPolicy]
) -> Iterator[MetricVerdict]:
    """Yield the verdicts on two predictions; ``why`` belongs to the first, the peak."""
    values, others = _values(before), _values(after)
    for metric, part in dict.fromkeys([*values, *others]):
        sides = [[each[metric, part]] if (metric, part) in each else [] for each in (values, others)]
        if part is not None and not all(sides):
            continue  # nothing happens in that phase on one side, so that it has no peak of its own
        verdict = judge_exact(name, rules[metric], *sides)
        reason = verdict.reason
        if all(sides) and rules[metric].metric.unit == "bytes":
            reason = changed_bytes(sides[0][0], sides[1][0])
        yield replace(
            verdict,
            task=part,
            improved=verdict.improved and _matters(verdict, rules[metric]),
            reason=f"{reason}; {why}" if why else reason,
        )
        why = ""
    if after.reserved_peak_bytes is not None and before.reserved_peak_bytes is not None:
        yield _reserved(name, rules[_RESERVED], before, after)
        yield from _held(name, rules[_RESERVED], before, after)


def _matters(verdict: MetricVerdict, policy: MetricPolicy) -> bool:
    """Tell whether a change is as large as one for the worse would have to be."""
    before, after = verdict.baseline or 0.0, verdict.candidate or 0.0
    return abs(after - before) >= policy.tolerated(before)


def _values(prediction: Prediction) -> dict[tuple[str, str | None], float]:
    """Return every exact figure by metric and phase, the peak first; what is not known is left out."""
    on_cuda = prediction.platform.device == "cuda"
    peak = _PEAKS[prediction.platform.device]
    trained = prediction.trainable_parameters
    known: dict[tuple[str, str | None], float | None] = {
        (peak, None): prediction.requested_peak_bytes if on_cuda else prediction.allocated_peak_bytes,
        (_ALLOCATED, None): prediction.allocated_peak_bytes if on_cuda else None,
        ("parameters_trainable", None): sum(trained.values()) if trained else None,
        ("step_flops", None): prediction.step_flops,
        ("saved_for_backward_bytes", None): prediction.saved_for_backward_bytes,
        ("op_count", None): prediction.op_count,
        ("paged_bytes", None): prediction.paged_bytes,
    }
    by_phase = prediction.phase_requested_bytes if on_cuda else prediction.phase_peaks_bytes
    known |= {(peak, phase): value for phase, value in by_phase.items()}
    return {key: value for key, value in known.items() if value is not None}


def _reserved(cell: str, policy: MetricPolicy, before: Prediction, after: Prediction) -> MetricVerdict:
    """Judge what is reserved at the peak: changed for certain only where the bands do not meet."""
    first, second = before.reserved_peak_bytes or 0, after.reserved_peak_bytes or 0
    (low, high), (its_low, its_high) = (
        (one.reserved_low_bytes or 0, one.reserved_high_bytes or 0) for one in (before, after)
    )
    worse, better = its_low > high, its_high < low
    if worse or better:
        reason = (
            f"{changed_bytes(first, second)}, and the bands do not meet: {size_text(low)} to "
            f"{size_text(high)}, then {size_text(its_low)} to {size_text(its_high)}"
        )
    else:
        reason = f"allocator order: {changed_bytes(first, second)}, where the bands of the two meet"
    return policy.verdict(
        cell,
        "regression" if worse else "pass",
        "no change" if first == second else reason,
        improved=better,
        baseline=first,
        candidate=second,
        ratio=second / first if first else None,
    )


def _held(cell: str, policy: MetricPolicy, before: Prediction, after: Prediction) -> Iterator[MetricVerdict]:
    """Show, ungated, what is reserved as the phases of the first step end, where that differs."""
    ends, others = before.phase_ends_reserved_bytes, after.phase_ends_reserved_bytes
    changes = {phase: others[phase] - ends[phase] for phase in ends if phase in others}
    most = max(changes, key=lambda phase: abs(changes[phase]), default=None)
    if most is None or not changes[most]:
        return
    verdict = replace(policy, gated=False).verdict(
        cell,
        "pass",
        f"reserved as phases of the first step end: {phases_told(ends, others, 1)}",
        baseline=ends[most],
        candidate=others[most],
        ratio=others[most] / ends[most] if ends[most] else None,
    )
    yield replace(verdict, task=f"as {most} ends", kind="deterministic")
