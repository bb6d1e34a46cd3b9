"""Which runs of two sides belong together, what makes comparing them worthless, and which answers changed.

Judges nothing.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from bench.compare import grouped
from bench.errors import UsageError
from bench.metrics import Metric
from bench.records.run_summary import Answers, RunSummary
from bench.scenario.cell import Cell
from bench.stats.paired import Paired, pair_items
from bench.stats.sequential import MetricPolicy
from bench.stats.verdicts import AccuracyChange

_MOST_DIFFERENCES = 4
T = TypeVar("T")
_ANYWHERE = ("system", "architecture")
"""Conditions that exact metrics depend on too. Speed depends on all."""


def _good(runs: Sequence[RunSummary]) -> tuple[RunSummary, ...]:
    return tuple(run for run in runs if run.outcome == "ok")


def _view(read: Callable[["Pair"], T]) -> cached_property[T]:
    return cached_property(read)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The runs of one cell on both sides, those of the baseline by session; either side may have none.

    Good runs measured everything. The digest is that of the candidate's cell, empty where only its name is
    known. A pair *failed* where a run of either side ended neither ok nor out of memory.
    """

    cell_id: str
    sessions: tuple[tuple[RunSummary, ...], ...]
    candidate: tuple[RunSummary, ...]

    baseline = _view(lambda pair: tuple(run for session in pair.sessions for run in session))
    baseline_ok = _view(lambda pair: _good(pair.baseline))
    candidate_ok = _view(lambda pair: _good(pair.candidate))
    digest = _view(lambda pair: pair.candidate[-1].cell.digest if pair.candidate[-1].cell else "")
    outcomes = _view(lambda pair: {run.outcome for run in (*pair.baseline, *pair.candidate)})
    never_ran = _view(lambda pair: pair.outcomes <= {"unavailable", "skipped"})
    failed = _view(lambda pair: not pair.outcomes <= {"ok", "oom"} and not pair.never_ran)
    failures = _view(
        lambda pair: [
            run.failure
            for run in (*pair.baseline, *pair.candidate)
            if run.failure and run.outcome not in {"ok", "oom"}
        ]
    )

    def obstacle(self, metric: Metric) -> str | None:
        """Return in one sentence why a metric of cells with runs on both sides cannot be compared, if so."""
        if self._changed is not None:
            return self._changed
        names: Collection[str] = self._conditions
        if metric.kind == "paired":
            names = ()
        elif metric.kind == "deterministic":
            names = (*_ANYWHERE, "card") if metric.instrument == "torch allocator" else _ANYWHERE
        relevant = [text for name, text in self._conditions.items() if name in names]
        if relevant:
            return f"measured under other conditions: {_listed(relevant)}"
        return self._other_instrument(metric)

    @cached_property
    def _changed(self) -> str | None:
        before, after = self.baseline[-1], self.candidate[-1]
        if before.cell is None or after.cell is None:
            return None
        if before.cell is not after.cell and before.cell.digest != after.cell.digest:
            differing = _differing(_fields(before.cell), _fields(after.cell))
            return f"the cell itself was changed: {_listed([*differing.values()])}; measure both sides alike"
        if before.data_digest != after.data_digest:
            return "the local files that the cell reads differ; measure both sides with the same"
        return None

    @cached_property
    def _conditions(self) -> dict[str, str]:
        """Each condition that both sides recorded and that is not the same on both."""
        now = dict(self.candidate[-1].conditions)
        found: dict[str, str] = {}
        others = dict.fromkeys(run.conditions for run in self.baseline)
        others.pop(self.candidate[-1].conditions, None)  # the usual case
        for before in map(dict, others):
            shared = before.keys() & now.keys()
            found |= {name: told for name, told in _differing(before, now).items() if name in shared}
        return found

    @cached_property
    def _instruments(self) -> list[set[tuple[tuple[str, str], ...]]]:
        return [{run.instruments for run in side} for side in (self.baseline, self.candidate)]

    def _other_instrument(self, metric: Metric) -> str | None:
        if "NVML" not in metric.instrument and metric.instrument != "VmHWM":
            return None
        name = "NVML" if "NVML" in metric.instrument else "host memory"
        before, after = ({dict(each).get(name) or "none" for each in side} for side in self._instruments)
        if before == after and len(after) == 1:
            return None
        return _read_by_others(name, " or ".join(sorted(before)), " or ".join(sorted(after)))


def _read_by_others(name: str, before: object, after: object) -> str:
    return f"read by different instruments: {name} {before} before, {after} now"


def _differing(before: Mapping[str, object], after: Mapping[str, object]) -> dict[str, str]:
    """Return by name what is not the same on both sides, with both values."""

    def shown(value: object) -> str:
        return "not set" if value is None else str(value)

    pairs = ((name, before.get(name), after.get(name)) for name in {**before, **after})
    return {name: f"{name} {shown(old)} before, {shown(new)} now" for name, old, new in pairs if old != new}


def _listed(differences: Sequence[str]) -> str:
    more = len(differences) - _MOST_DIFFERENCES
    return "; ".join(differences[:_MOST_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def _fields(cell: Cell) -> dict[str, Any]:
    """Return every field of a cell that counts, by its path."""

    def flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for name, part in value.items():
                yield from flat(part, f"{path}.{name}" if path else name)
        else:
            yield path, value

    return dict(flat(cell.model_dump(mode="json", exclude={"id", "scenario", "limits"}), ""))


def pair_up(sessions: Sequence[Sequence[RunSummary]], candidate: Sequence[RunSummary]) -> tuple[Pair, ...]:
    """Return the cells of either side with their runs, the baseline's order first.

    Of runs of one cell under several keys (other versions, another machine) only those of the latest run's
    count. A contaminated run does not count where another took its place.
    """
    *before, after = (grouped(runs, lambda run: run.cell_id) for runs in (*sessions, candidate))
    return tuple(
        Pair(
            cell_id=name,
            sessions=tuple(_current(session[name]) for session in before if name in session),
            candidate=_current(after.get(name, [])),
        )
        for name in dict.fromkeys(name for side in (*before, after) for name in side)
    )


def _current(runs: Sequence[RunSummary]) -> tuple[RunSummary, ...]:
    same_key = [run for run in runs if run.key == runs[-1].key]
    unspoilt = [run for run in same_key if run.outcome != "contaminated"]
    return tuple(unspoilt or same_key)


def accuracy_changes(policy: MetricPolicy, pairs: Sequence[Pair]) -> Iterator[AccuracyChange]:
    """Yield the tasks that either side evaluated, where both have good runs; each from the first that did."""
    when = policy.metric.name.removeprefix("accuracy_")
    for pair in pairs:
        if not pair.baseline_ok or not pair.candidate_ok:
            continue  # how the runs ended is judged already
        before, after = (_by_task(runs, when) for runs in (pair.baseline_ok, pair.candidate_ok))
        for task in {**before, **after}:
            first, second = before.get(task), after.get(task)
            paired, why_not = _paired(first, second)
            yield AccuracyChange(
                cell=pair.cell_id,
                task=task,
                policy=policy,
                baseline=first.accuracy if first else None,
                candidate=second.accuracy if second else None,
                paired=paired,
                why_not=why_not,
            )


def _by_task(runs: Sequence[RunSummary], when: str) -> dict[str, Answers]:
    found = grouped((one for run in runs for one in run.answers if one.when == when), lambda one: one.task)
    return {task: answers[0] for task, answers in found.items()}


def _paired(first: Answers | None, second: Answers | None) -> tuple[Paired | None, str | None]:
    if first is None or second is None:
        return None, f"not evaluated in the {'baseline' if first is None else 'candidate'}"
    for name in ("metric", "num_fewshot", "instrument"):
        before, after = getattr(first, name), getattr(second, name)
        if before != after:
            return None, _read_by_others(name, before, after)
    # Runs that saw the same questions share one object, and their answers are counted as whole numbers.
    sources = first.sources or (second.sources if first.questions == second.questions else ())
    if first.questions is second.questions and first.questions and not sources:
        was, is_now = int.from_bytes(first.correct), int.from_bytes(second.correct)
        gained, lost = (is_now & ~was).bit_count(), (was & ~is_now).bit_count()
        return Paired(items=len(first.correct), gained=gained, lost=lost), None
    try:
        return pair_items(first.items, second.items, sources), None
    except UsageError as error:
        return None, str(error)
