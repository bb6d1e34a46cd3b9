"""Two sides of a comparison as one document of verdicts: `bench compare`, and both kinds of `bench gate`.

Calls what judges each kind of metric and adjusts for all of them together. A session is judged from its
records, while it lasts, to know what to run again, and ever after; the same records, gate and calibration
always give the same verdicts. Shows nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path

from bench.compare import grouped
from bench.compare.caveats import changed, facts, kept_memory, shared
from bench.compare.cross_checks import Kind, contradictions, doubts_of, outside_the_window, unseen
from bench.compare.explained import peak_explained
from bench.compare.metrics_compared import (
    MetricSamples,
    has_metric,
    judge_exactly,
    judge_session,
    judge_stored,
    not_comparable,
    one_sided,
    samples_of,
)
from bench.compare.predicted_gate import judge_predictions
from bench.compare.run_pairs import Pair, accuracy_changes, pair_up
from bench.errors import counted, listed, percent
from bench.metrics import MIB, Metric
from bench.records.readings import Caveat
from bench.records.records import Record
from bench.records.result_sets import ResultSet
from bench.records.run_summary import CARD_CONDITIONS, RunSummary, summarise_run
from bench.records.sessions import (
    CALIBRATION_FILE,
    PLAN_FILES,
    SIDES,
    Calibration,
    SideName,
    SittingRecords,
    counted_runs,
    load_sitting,
    read_calibration,
    require_this_machine,
)
from bench.records.store import record_file_name
from bench.records.verdicts import (
    WORST_FIRST,
    ComparedSide,
    Design,
    MetricVerdict,
    Verdicts,
    outcome_verdict,
    overall,
)
from bench.scenario.gate import GateSpec
from bench.scenario.loop import NO_LOOP
from bench.stats.chance import Rule, holm
from bench.stats.power import repeats_asked
from bench.stats.sequential import policies, rule_of
from bench.stats.verdicts import AccuracyChange, accuracy_p_values, judge_accuracy, judge_outcomes

_NAMED_CELLS = 5
_LEAST_TOLD = 65_536  # bytes: parts of less would be written as 0.00 MiB
_TOLD_SHARE = 0.1
"""Of a peak's change: what holds so much more or less at it is named."""
_BROUGHT = "; where this change brings the gate, there is no base yet: merge its scenario and loop first"


@dataclass(frozen=True, kw_only=True)
class GateJudge:
    """Judges two sides by one gate.

    The designs *one sitting* (also *by steps*) are for sides that ran in turn; ``looks`` are then the repeats
    after which it could end, by default those of the gate.
    """

    gate: GateSpec
    design: Design
    looks: tuple[int, ...] | None = None
    calibration: Calibration | None = None
    contradicted: Mapping[tuple[str, Kind], str] = field(default_factory=dict)

    def __call__(self, records: Mapping[SideName, Sequence[Record]], repeats: int) -> frozenset[str]:
        """Return the cells that more runs could decide. What is left after a look is so after the next."""
        del repeats  # the records say it
        return open_cells(self.judge(records))

    def judge(
        self,
        records: Mapping[SideName, Sequence[Record]],
        *,
        given: Mapping[SideName, str] | None = None,
        caveats: Sequence[Caveat] = (),
        problems: tuple[str, ...] = (),
    ) -> Verdicts:
        """Return every verdict. Raises ``UsageError`` where the calibration is of another machine."""
        base, candidate = (
            ResultSet(
                given=(given or {}).get(side, side), sessions=(tuple(map(summarise_run, records[side])),)
            )
            for side in SIDES
        )
        if self.calibration is not None and records["base"]:
            made = records["base"][0]
            device = made.measurement.device
            require_this_machine(self.calibration, made.environment, device.cuda_name if device else None)
        verdicts = self.compare(base, replace(candidate, problems=problems), caveats)
        last = [
            {record.cell.id: record for record in records[side] if record.outcome == "ok"} for side in SIDES
        ]
        judged = tuple(
            _with_cause(one, *(side.get(one.cell) for side in last)) for one in verdicts.judgements
        )
        held = tuple(_kept_by(verdicts, last[1]))
        return verdicts.model_copy(update={"judgements": judged, "caveats": (*verdicts.caveats, *held)})

    def compare(self, baseline: ResultSet, candidate: ResultSet, caveats: Sequence[Caveat] = ()) -> Verdicts:
        """Return every verdict on the candidate against the baseline."""
        pairs = pair_up(baseline.sessions, candidate.runs)
        verdicts, drifts, varying = self._judge(pairs)
        verdicts.sort(key=lambda one: (not one.gated, WORST_FIRST.index(one.verdict), -one.size))
        facts_before, facts_after = _environment_facts(baseline.runs), _environment_facts(candidate.runs)
        runs = len(baseline.runs) + len(candidate.runs)
        before, after = (
            ComparedSide(
                given=side.given, runs=len(side.runs), sittings=len(side.sessions), environment=shared(known)
            )
            for side, known in ((baseline, facts_before), (candidate, facts_after))
        )
        measured = {one.metric for one in verdicts if one.baseline is not None and one.candidate is not None}
        gated = [each for name, each in policies(self.gate).items() if each.gated and name in measured]
        return Verdicts(
            design=self.design,
            scenarios=tuple(dict.fromkeys(run.cell.scenario for run in candidate.runs if run.cell)),
            verdict=overall(verdicts),
            alpha=self.gate.alpha,
            baseline=before,
            candidate=after,
            differences=tuple(changed(facts_before, facts_after)),
            failed_cells=tuple(pair.cell_id for pair in pairs if pair.failed),
            judgements=tuple(verdicts),
            unseen=unseen(gated, varying, self._rule),
            caveats=(*caveats, *_caveats(runs, pairs, drifts), *self._of_speed(verdicts)),
            problems=(*baseline.problems, *candidate.problems),
        )

    @property
    def _one_session(self) -> bool:
        return self.design in {"one sitting", "one sitting by steps"}

    def _judge(
        self, pairs: Sequence[Pair]
    ) -> tuple[list[MetricVerdict], dict[str, float], list[MetricSamples]]:
        """Judge all metrics, those with a p-value as one family; return also what drifted, and samples."""
        verdicts = [self._outcome(pair) for pair in pairs]
        changes: list[AccuracyChange] = []
        varying: list[MetricSamples] = []
        both = [pair for pair in pairs if pair.baseline and pair.candidate]
        for policy in policies(self.gate).values():
            comparable = []
            for pair in both:
                obstacle = pair.obstacle(policy.metric) or self._doubt(pair.cell_id, policy.metric)
                if obstacle is None:
                    comparable.append(pair)
                elif any(has_metric(run, policy) for run in (*pair.baseline, *pair.candidate)):
                    shown = not_comparable(policy, pair, obstacle)
                    # Of other machines, exact metrics must do: their heaps differ by what is no change.
                    verdicts.append(replace(shown, gated=shown.gated and policy.metric.kind != "bounded"))
            if policy.metric.exact:
                verdicts += judge_exactly(policy, comparable)
            elif policy.metric.kind == "paired":
                changes += accuracy_changes(policy, comparable)
            else:
                samples = samples_of(policy, comparable, by_steps=self.design == "one sitting by steps")
                verdicts += one_sided(samples, comparable)
                varying.append(samples)
        verdicts += self._by_chance(changes, [samples for samples in varying if samples.pairs])
        drifts: dict[str, float] = {}
        for samples in varying:
            for cell, share in samples.drifts.items() if samples.policy.gated else ():
                drifts[cell] = max(drifts.get(cell, 0.0), share, key=abs)
        return verdicts, drifts, varying

    def _doubt(self, cell: str, metric: Metric) -> str | None:
        found = (self.contradicted.get((cell, kind)) for kind in doubts_of(metric))
        return next(filter(None, found), None)

    def _by_chance(
        self, changes: Sequence[AccuracyChange], varying: Sequence[MetricSamples]
    ) -> Iterator[MetricVerdict]:
        """Yield the verdicts on speed and accuracy. What is gated of both is one family."""
        rule = self._rule
        tested, others = ([one for one in changes if one.policy.gated is gated] for gated in (True, False))
        gated, shown = ([one for one in varying if one.policy.gated is gated] for gated in (True, False))
        p_values = accuracy_p_values(tested)
        if self._one_session:
            speed, family_p_values = judge_session(gated, shown, rule, self.calibration, p_values)
        else:
            speed, family_p_values = judge_stored(gated, shown, rule, p_values)
        yield from speed
        yield from judge_accuracy(tested, family_p_values, self.gate)
        yield from judge_accuracy(others, holm(accuracy_p_values(others)), self.gate)

    def _outcome(self, pair: Pair) -> MetricVerdict:
        """Judge how a cell's runs ended; what the baseline lacks or neither side ever ran is only listed."""
        before, after = ([run.outcome for run in runs] for runs in (pair.baseline, pair.candidate))
        verdict = judge_outcomes(pair.cell_id, before, after)
        if not before and not self._one_session:
            reason = "new: the baseline has no run of it, so it is not judged"
            return replace(verdict, gated=False, reason=reason)
        if before and after and pair.never_ran:
            reason = f"neither side ran it ({' and '.join(sorted(pair.outcomes))})"
            return replace(verdict, gated=False, reason=reason)
        if verdict.verdict == "not comparable" and pair.failures:
            why = pair.failures[0].rstrip(".")
            brought = self._one_session and set(after) == {"ok"} and NO_LOOP in why
            return replace(verdict, reason=f"{verdict.reason}: {why}{_BROUGHT if brought else ''}")
        return verdict

    def _of_speed(self, verdicts: Sequence[MetricVerdict]) -> Iterator[Caveat]:
        """Yield where total and median disagree, and what these repeats could not have come to."""
        apart = [one for one in verdicts if one.median_disagrees and one.gated]
        for one in apart:
            told = [f"{ratio or 1:.3f}" for ratio in (one.ratio, one.median_ratio)]
            message = (
                f"{one.metric} of {one.cell} is {told[0]} of the baseline's over all steps, and {told[1]} in "
                "the median step: some steps changed more than others, late ones or every so many. The "
                "verdict goes by all steps."
            )
            yield Caveat("median-disagrees", message)
        tests = sum(one.gated and one.p_value is not None for one in verdicts)
        if self._one_session and any(one.gated and one.kind == "statistical" for one in verdicts):
            rule, pairs = self._rule, self.design == "one sitting by steps"
            if rule.fewest_repeats(tests, pairs=pairs) > rule.looks[-1]:
                yield Caveat("too-few-repeats", repeats_asked(rule, tests, pairs=pairs))

    @property
    def _rule(self) -> Rule:
        rule = rule_of(self.gate)
        return replace(rule, looks=self.looks or rule.looks) if self._one_session else rule


def _with_cause(judged: MetricVerdict, base: Record | None, candidate: Record | None) -> MetricVerdict:
    """Say beside the change of an exact peak what holds more or less at it now."""
    before, after = (record.measurement.ledger if record else None for record in (base, candidate))
    change = abs((judged.candidate or 0) - (judged.baseline or 0))
    told = change >= _LEAST_TOLD and (judged.verdict == "regression" or judged.improved)
    if judged.metric != "ledger_peak_bytes" or not told or before is None or after is None:
        return judged
    clauses = peak_explained(before, after, int(min(change * _TOLD_SHARE, MIB)))
    return replace(judged, reason="; ".join([judged.reason, *clauses]))


def _kept_by(verdicts: Verdicts, last: Mapping[str, Record]) -> Iterator[Caveat]:
    """Yield what holds or makes the tensors of cells that retain or leak more."""
    names = {"retained_bytes": "retained", "leaked_bytes_per_step": "leak"}
    for one in verdicts.gated:
        if one.verdict == "regression" and one.metric in names and one.cell in last:
            for code, told in kept_memory(last[one.cell]):
                if code == names[one.metric]:
                    yield Caveat(code, f"{one.cell}: {told}")


def _environment_facts(runs: Sequence[RunSummary]) -> dict[str, set[str]]:
    """Return every value of each fact on where runs were made, their commit included."""
    environments = {id(run.environment): run.environment for run in runs}.values()
    known = [item for environment in environments for item in facts(environment).items()]
    known += [
        (f"gpu.{name}", str(value))
        for conditions in dict.fromkeys(run.conditions for run in runs)
        for name, value in conditions
        if name in CARD_CONDITIONS and value is not None
    ]
    return {name: {value for _, value in own} for name, own in grouped(known, itemgetter(0)).items()}


def _caveats(runs: int, pairs: Sequence[Pair], drifts: Mapping[str, float]) -> Iterator[Caveat]:
    """Yield how many of all runs are in no pair, and the cells whose speed had not settled."""
    if left := runs - sum(len(pair.baseline) + len(pair.candidate) for pair in pairs):
        why = "with other versions or machines than the latest, or spoilt"
        yield Caveat("left-out", f"Left out: {counted(left, 'run')}, {why}.")
    if named := [f"{cell} ({percent(share, sign='+')})" for cell, share in drifts.items()]:
        cells = listed(named, _NAMED_CELLS)
        message = f"Speed still drifted over the last half of the steps: {cells}; raise window.warmup_steps."
        yield Caveat("not-steady", message)


def _undecided(one: MetricVerdict) -> bool:
    return one.gated and (one.kind, one.verdict) == ("statistical", "inconclusive")


def open_cells(verdicts: Verdicts) -> frozenset[str]:
    """Return the cells with a gated metric that varies and is undecided, and none that regressed."""
    gated = verdicts.gated
    undecided = {one.cell for one in gated if _undecided(one)}
    return frozenset(undecided - {one.cell for one in gated if one.verdict == "regression"})


def judge_folder(folder: Path) -> Verdicts:
    """Judge a stored session by the gate it was made for and the calibration that lies beside it.

    Raises ``UsageError`` where there is no session, or its calibration is damaged or of another machine.
    """
    if (folder / PLAN_FILES["base"]).is_file():
        return judge_predictions(folder)
    calibrated = (folder / CALIBRATION_FILE).exists()
    return judge_records(load_sitting(folder), read_calibration(folder) if calibrated else None)


def judge_records(loaded: SittingRecords, calibration: Calibration | None = None) -> Verdicts:
    """Judge a session as loaded. A cell that never began has not passed; a missing record is a failure."""
    session = loaded.sitting
    judge = GateJudge(
        gate=session.gate or GateSpec(),
        design="one sitting by steps" if session.by_steps else "one sitting",
        looks=session.looks,
        calibration=calibration,
        contradicted=contradictions(loaded),
    )
    caveats = [*session.caveats, *outside_the_window(loaded)]
    if session.ended_at is None:
        caveats.append(Caveat("unfinished", "The session was broken off; run it again with --resume."))
    elif session.stopped == "budget":
        caveats.append(Caveat("budget-spent", f"The budget of {session.budget_s:g} s ended the session."))
    verdicts = judge.judge(
        loaded.records,
        given={side: session.facts(side).name for side in SIDES},
        caveats=tuple(dict.fromkeys(caveats)),
        problems=loaded.problems,
    )
    judged = {one.cell for one in verdicts.judgements}
    why = "the session ended before its turn; give it a larger --budget"
    never_begun = [outcome_verdict(cell, "inconclusive", why) for cell in session.cells if cell not in judged]
    cut = f"the budget of {session.budget_s:g} s ended it first; " if session.stopped == "budget" else ""
    told = [replace(one, reason=cut + one.reason) if _undecided(one) else one for one in verdicts.judgements]
    judgements = (*never_begun, *told)
    there = {side: {record_file_name(record) for record in loaded.records[side]} for side in SIDES}
    missing = [run.cell for run in counted_runs(session.runs) if run.file not in there[run.side]]
    failed = tuple(dict.fromkeys((*verdicts.failed_cells, *missing)))
    verdict = "inconclusive" if verdicts.void else overall(judgements)
    return verdicts.model_copy(
        update={
            "judgements": judgements,
            "failed_cells": failed,
            "verdict": "inconclusive" if failed and verdict == "pass" else verdict,
            "judge": session.judge,
            "baseline": verdicts.baseline.model_copy(update={"understood": session.base.understood}),
            "candidate": verdicts.candidate.model_copy(update={"understood": session.candidate.understood}),
        }
    )
