"""Which runs of two sides belong together, what makes comparing them worthless, and which answers changed.

Judges nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bench.errors import UsageError
from bench.metrics import Metric
from bench.records.run_summary import Answers, Facts, Instruments, RunSummary
from bench.scenario.cell import Cell
from bench.stats.paired import Paired, pair_items
from bench.stats.sequential import MetricPolicy
from bench.stats.verdicts import AccuracyChange

_MOST_DIFFERENCES = 4
_ANYWHERE = ("system", "architecture")
"""Conditions that exact metrics depend on too. Speed depends on all."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The runs of one cell on both sides, those of the baseline by session; either side may have none."""

    cell_id: str
    sessions: tuple[tuple[RunSummary, ...], ...]
    candidate: tuple[RunSummary, ...]

    @cached_property
    def baseline(self) -> tuple[RunSummary, ...]:
        """All runs of the baseline, in order."""
        return tuple(run for session in self.sessions for run in session)

    @cached_property
    def sessions_ok(self) -> tuple[tuple[RunSummary, ...], ...]:
        """The baseline's runs that measured everything, by session."""
        return tuple(tuple([run for run in session if run.outcome == "ok"]) for session in self.sessions)

    @cached_property
    def baseline_ok(self) -> tuple[RunSummary, ...]:
        """The baseline's runs that measured everything."""
        return tuple(run for session in self.sessions_ok for run in session)

    @cached_property
    def candidate_ok(self) -> tuple[RunSummary, ...]:
        """The candidate's runs that measured everything."""
        return tuple(run for run in self.candidate if run.outcome == "ok")

    @cached_property
    def digest(self) -> str:
        """The digest of the candidate's cell; empty where only its name is known."""
        cell = self.candidate[-1].cell
        return cell.digest if cell else ""

    @cached_property
    def failed(self) -> bool:
        """Whether a run of either side ended neither ok nor out of memory."""
        failed = any(run.outcome not in {"ok", "oom"} for run in (*self.baseline, *self.candidate))
        return failed and not self.never_ran

    @cached_property
    def never_ran(self) -> bool:
        """Whether no run of either side was as much as tried."""
        return {run.outcome for run in (*self.baseline, *self.candidate)} <= {"unavailable", "skipped"}

    @cached_property
    def changed(self) -> str | None:
        """Return in one sentence why the two are not the same cell; None where they are."""
        if not self.baseline or not self.candidate:
            return None
        before, after = self.baseline[-1], self.candidate[-1]
        if before.cell is None or after.cell is None:
            return None
        if before.cell is not after.cell and before.cell.digest != after.cell.digest:
            differences = _cell_differences(before.cell, after.cell)
            return f"the cell itself was changed: {differences}; measure both sides alike"
        if before.inputs_digest != after.inputs_digest:
            return "the local files that the cell reads differ; measure both sides with the same"
        return None

    @cached_property
    def conditions(self) -> dict[str, str]:
        """Return each condition that is not the same on both sides, with both values."""
        if not self.baseline or not self.candidate:
            return {}
        after = self.candidate[-1].conditions
        found: dict[str, str] = {}
        for before in {run.conditions for run in self.baseline}:
            found |= _different(before, after)
        return found

    def obstacle(self, metric: Metric) -> str | None:
        """Return in one sentence why this metric cannot be compared; None where it can."""
        if self.changed is not None:
            return self.changed
        if self.conditions and (relevant := self._relevant(metric)):
            return f"measured under other conditions: {_listed(relevant)}"
        return self._other_instrument(metric)

    def _relevant(self, metric: Metric) -> dict[str, str]:
        """Return the differing conditions that this metric depends on."""
        if metric.kind == "deterministic":
            card = ("card",) if metric.instrument == "torch allocator" else ()
            return {name: text for name, text in self.conditions.items() if name in (*_ANYWHERE, *card)}
        return {} if metric.kind == "paired" else self.conditions

    @cached_property
    def _instruments(self) -> tuple[set[Instruments], set[Instruments]]:
        return {run.instruments for run in self.baseline}, {run.instruments for run in self.candidate}

    def _other_instrument(self, metric: Metric) -> str | None:
        if "NVML" not in metric.instrument and metric.instrument != "VmHWM":
            return None
        name = "NVML" if "NVML" in metric.instrument else "host memory"
        before, after = ({dict(each).get(name) for each in side} for side in self._instruments)
        if before == after and len(after) == 1:
            return None
        return f"read by different instruments: {name} {_either(before)} before, {_either(after)} now"


def _either(names: set[str | None]) -> str:
    return " or ".join(sorted(name or "none" for name in names))


def _different(before: Facts, after: Facts) -> dict[str, str]:
    """Return what both recorded and did not find alike."""
    if before == after:
        return {}
    there = dict(after)
    return {
        name: f"{name} {_shown(value)} before, {_shown(there[name])} now"
        for name, value in before
        if name in there and there[name] != value
    }


def _shown(value: object) -> str:
    return "not set" if value is None else str(value)


def _listed(differences: dict[str, str]) -> str:
    shown = list(differences.values())[:_MOST_DIFFERENCES]
    more = len(differences) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _cell_differences(before: Cell, after: Cell) -> str:
    old, new = (
        dict(_flat(side.model_dump(mode="json", exclude={"id", "scenario", "limits"})))
        for side in (before, after)
    )
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return _listed(
        {name: f"{name} {_shown(old.get(name))} before, {_shown(new.get(name))} now" for name in names}
    )


def _flat(table: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in table.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found


def pair_up(sessions: Sequence[Sequence[RunSummary]], candidate: Sequence[RunSummary]) -> tuple[Pair, ...]:
    """Return the cells of either side with their runs, the baseline's order first.

    Of runs of one cell under several keys (other versions, another machine) only those of the latest run's
    count. A contaminated run does not count where another took its place.
    """
    before = [_by_cell(session) for session in sessions]
    after = _by_cell(candidate)
    names = dict.fromkeys(name for side in (*before, after) for name in side)
    return tuple(
        Pair(
            cell_id=name,
            sessions=tuple(_current(session[name]) for session in before if name in session),
            candidate=_current(after.get(name, [])),
        )
        for name in names
    )


def _by_cell(runs: Sequence[RunSummary]) -> dict[str, list[RunSummary]]:
    cells: dict[str, list[RunSummary]] = {}
    for run in runs:
        cells.setdefault(run.cell_id, []).append(run)
    return cells


def _current(runs: Sequence[RunSummary]) -> tuple[RunSummary, ...]:
    if not runs:
        return ()
    same_key = [run for run in runs if run.key == runs[-1].key]
    unspoilt = [run for run in same_key if run.outcome != "contaminated"]
    return tuple(unspoilt or same_key)


def accuracy_changes(policy: MetricPolicy, pairs: Sequence[Pair]) -> Iterator[AccuracyChange]:
    """Yield the tasks that either side evaluated, where both have good runs; each from the first that did."""
    when = policy.metric.name.removeprefix("accuracy_")
    for pair in pairs:
        if not pair.baseline_ok or not pair.candidate_ok:
            continue  # how the runs ended is judged already
        before, after = _by_task(pair.baseline_ok, when), _by_task(pair.candidate_ok, when)
        for task in {**before, **after}:
            first, second = before.get(task), after.get(task)
            paired, why_not = _paired(first, second)
            yield AccuracyChange(
                cell=pair.cell_id,
                task=task,
                policy=policy,
                baseline=None if first is None else first.accuracy,
                candidate=None if second is None else second.accuracy,
                paired=paired,
                why_not=why_not,
            )


def _by_task(runs: Sequence[RunSummary], when: str) -> dict[str, Answers]:
    found: dict[str, Answers] = {}
    for run in runs:
        for answers in run.answers:
            if answers.when == when:
                found.setdefault(answers.task, answers)
    return found


def _paired(first: Answers | None, second: Answers | None) -> tuple[Paired | None, str | None]:
    if first is None or second is None:
        return None, f"not evaluated in the {'baseline' if first is None else 'candidate'}"
    for name in ("metric", "num_fewshot", "instrument"):
        before, after = getattr(first, name), getattr(second, name)
        if before != after:
            return None, f"read by different instruments: {name} {before} before, {after} now"
    try:
        # Runs that saw the same questions share one object, and their answers are counted as whole numbers.
        if first.questions is second.questions and first.questions:
            return _counted(first.correct, second.correct), None
        return pair_items(first.items, second.items), None
    except UsageError as error:
        return None, str(error)


def _counted(before: bytes, after: bytes) -> Paired:
    was, is_now = int.from_bytes(before), int.from_bytes(after)
    gained, lost = (is_now & ~was).bit_count(), (was & ~is_now).bit_count()
    return Paired(items=len(before), unmatched=0, gained=gained, lost=lost)
