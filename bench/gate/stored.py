"""Stored results judged: two result sets, results against a baseline, and what a baseline may take in."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.compare import grouped
from bench.compare.gate_report import GateJudge, judge_folder
from bench.compare.predicted_gate import compare_plans
from bench.errors import UsageError, counted
from bench.metrics import METRICS
from bench.records.predictions import is_plan
from bench.records.result_sets import Accepted, BaselineFolder, load_result_set
from bench.records.run_summary import RunSummary
from bench.records.verdicts import OUTCOME, Verdicts
from bench.scenario.gate import GateSpec
from bench.stats.trend import ChangePoint, exact_changes, level_changes


def compare_results(baseline: str, candidate: str, gate: GateSpec) -> Verdicts:
    """Compare two result sets: folders, files, or ``REV:path``; or two plans.

    The two sides of one session are judged as such, by the gate it was made for; anything else as measured on
    different days. Raises ``UsageError`` where a side has no run.
    """
    plans = [is_plan(Path(given)) for given in (baseline, candidate)]
    if all(plans):
        return compare_plans(Path(baseline), Path(candidate), gate)
    if any(plans):
        one, other = (baseline, candidate) if plans[0] else (candidate, baseline)
        raise UsageError(
            f"{one} is a plan, and {other} is none; a prediction is compared with another: write one with "
            "bench plan --json"
        )
    before, after = load_result_set(baseline), load_result_set(candidate)
    if before.sitting is not None and before.sitting == after.sitting:
        return judge_folder(before.sitting)
    return GateJudge(gate=gate, design="two result sets").compare(before, after)


def gate_results(results: str, baseline: BaselineFolder, gate: GateSpec) -> Verdicts:
    """Judge stored results against the current level of a baseline."""
    before = baseline.result_set(baseline.read().current)
    return GateJudge(gate=gate, design="stored baseline").compare(before, load_result_set(results))


def diff_baseline(baseline: BaselineFolder, numbers: tuple[int, int] | None) -> Verdicts:
    """Compare two accepted sessions, by default the last with the one before."""
    accepted = baseline.read().accepted
    chosen = numbers or (len(accepted) - 1, len(accepted))
    for number in chosen:
        if not 1 <= number <= len(accepted):
            raise UsageError(
                f"the baseline {baseline.name} has {counted(len(accepted), 'session')} and so no number "
                f"{number}; see bench baseline show"
            )
    before, after = (baseline.result_set([accepted[number - 1]]) for number in chosen)
    return GateJudge(gate=GateSpec(), design="two result sets").compare(before, after)


def accept_results(results: Path, baseline: BaselineFolder, *, reason: str, new_level: bool) -> Accepted:
    """Take the runs of a results folder that ended ok or out of memory into a baseline.

    Unless it begins a new level, a session must be like those before. Raises ``UsageError`` where it is not,
    or there is nothing to take.
    """
    if not results.is_dir():
        raise UsageError(f"{results} is no results folder; a baseline takes the records of one session")
    found = load_result_set(str(results))
    if found.problems:
        raise UsageError(f"{found.problems[0]}; a baseline takes only folders that can be read whole")
    if any(run.cell is None for run in found.runs):
        raise UsageError(
            f"{results} holds results of another tool; a baseline takes only records of bench run"
        )
    taken = [
        results / file
        for run, file in zip(found.runs, found.files, strict=True)
        if run.outcome in {"ok", "oom"}
    ]
    if not taken:
        raise UsageError(f"no run of {results} ended ok; a baseline has nothing to take from it")
    with baseline.held():
        if baseline.exists():
            _require_new(found.runs, baseline)
            if not new_level:
                _require_alike(str(results), baseline)
        return baseline.accept(taken, reason=reason, new_level=new_level)


def _require_new(runs: Sequence[RunSummary], baseline: BaselineFolder) -> None:
    """Raise ``UsageError`` for runs that were accepted before: one day counted twice looks like two alike."""
    accepted = baseline.result_set(baseline.read().accepted).runs
    known = {(run.key, run.run, run.started_at) for run in accepted}
    again = [run for run in runs if (run.key, run.run, run.started_at) in known]
    if again:
        raise UsageError(
            f"{again[0].cell_id}, run {again[0].run}, is in the baseline {baseline.name} already; a session "
            "is accepted once, so run the scenario again into another folder (--results)"
        )


def _require_alike(results: str, baseline: BaselineFolder) -> None:
    """Raise ``UsageError`` for what changed for certain, for better or worse, or cannot be compared."""
    unlike = [
        judged
        for judged in gate_results(results, baseline, GateSpec()).judgements
        if (judged.gated or judged.metric == OUTCOME)
        and (judged.verdict in {"regression", "not comparable"} or judged.improved)
        and judged.kind != "statistical"
    ]
    if unlike:
        first = unlike[0]
        raise UsageError(
            f"{results} is not like the baseline {baseline.name}, in {counted(len(unlike), 'metric')}, the "
            f"first being {first.cell}, {first.metric}: {first.reason}; if that is as intended, begin a new "
            "level with --new-level"
        )


def changes_in_history(baseline: BaselineFolder) -> tuple[list[ChangePoint], int, int]:
    """Return where gated metrics changed over all accepted sessions, of all levels.

    Beside the changes stand the numbers of sessions and of series of values: medians over a cell's good runs.
    Raises ``UnavailableError`` where that takes ruptures, which is not installed.
    """
    accepted = baseline.read().accepted
    values: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for one, session in zip(accepted, baseline.result_set(accepted).sessions, strict=True):
        cells = grouped((run for run in session if run.outcome == "ok"), lambda run: run.cell_id)
        for name in (name for name, metric in METRICS.items() if metric.gated):
            for cell, runs in cells.items():
                if found := [value for run in runs if (value := run.values.get(name)) is not None]:
                    values.setdefault((cell, name), []).append((one.number, median(found)))
    changes: list[ChangePoint] = []
    for (cell, name), points in values.items():
        numbers, series = zip(*points, strict=True)
        varies = METRICS[name].kind != "deterministic"
        changes += (level_changes if varies else exact_changes)(cell, name, numbers, series)
    return changes, len(accepted), len(values)
