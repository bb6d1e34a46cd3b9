"""What a sweep has to do: which cells, in which order, and which of them are on disk already. Pure."""

import difflib
import fnmatch
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import get_args

from bench.errors import UsageError
from bench.records.environment import KEY_PACKAGES
from bench.records.records import DeviceFacts, Environment, Outcome, Record
from bench.scenario.types import Cell

KEY_MACHINE = ("architecture", "cpu_model", "cpu_cores")
NEAR_IDS = 5
ENDED_BY_LIMITS = frozenset({"oom", "timeout"})


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run to do; ``reason`` says why this machine cannot, and then nothing is started."""

    cell: Cell
    key: str
    run: int
    reason: str | None


def parse_outcomes(text: str) -> frozenset[Outcome]:
    """Return the outcomes of a comma-separated list; raise ``UsageError`` for one there is not."""
    known: tuple[Outcome, ...] = get_args(Outcome)
    outcomes = set()
    for name in filter(None, (part.strip() for part in text.split(","))):
        found = next((outcome for outcome in known if outcome == name), None)
        if found is None:
            raise UsageError(f"--retry {name}: there is no such outcome; choose from {', '.join(known)}")
        outcomes.add(found)
    return frozenset(outcomes)


def run_key(
    cell: Cell, environment: Environment, facts: DeviceFacts, inputs_digest: str | None = None
) -> str:
    """Return what two runs must share to be the same: a SHA-256 of cell, inputs, versions and machine."""
    content = {
        "cell": cell.digest,
        "versions": {name: environment.versions.get(name) for name in ("python", *KEY_PACKAGES)},
        "machine": {name: environment.machine.get(name) for name in KEY_MACHINE},
        "device": facts.cuda_name if cell.device == "cuda" else None,
        "threads": [facts.cpu_threads, environment.threads],
        "inputs": inputs_digest,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def choose_cells(cells: Sequence[Cell], pattern: str | None) -> list[Cell]:
    """Return the cells whose id matches a shell pattern; ``*`` crosses slashes.

    Raises ``UsageError`` with near ids when none does.
    """
    if pattern is None:
        return list(cells)
    chosen = [cell for cell in cells if fnmatch.fnmatchcase(cell.id, pattern)]
    if not chosen:
        ids = [cell.id for cell in cells]
        near = [id_ for id_ in ids if pattern.strip("*?") in id_][:NEAR_IDS]
        near = near or difflib.get_close_matches(pattern, ids, n=NEAR_IDS, cutoff=0.3) or ids[:NEAR_IDS]
        raise UsageError(f"--only {pattern} matches no cell; perhaps you meant {' or '.join(near)}")
    return chosen


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """How often each cell is run, and which records do not count as done; skipped ones do only on request."""

    repeats: int = 1
    retry: Collection[Outcome] = ()
    force: bool = False
    keep_skipped: bool = False


def plan_runs(
    cells: Sequence[Cell],
    records: Sequence[Record],
    *,
    key_of: Callable[[Cell], str],
    reason_of: Callable[[Cell], str | None],
    options: PlanOptions,
) -> list[PlannedRun]:
    """Return the runs to do, repeats outermost: every cell once, then every cell again.

    A run on disk counts as done whatever its outcome, except outcomes to retry, *contaminated*,
    *unavailable* where the machine can do it by now, *skipped* unless those are kept, and *oom* and
    *timeout* under limits that have been changed since. What does not count stays on disk, and the new run
    takes the next number.
    """
    last_run: Counter[str] = Counter()
    for record in records:
        last_run[record.key] = max(last_run[record.key], record.run)
    keys = {cell.id: key_of(cell) for cell in cells}
    reasons = {cell.id: reason_of(cell) for cell in cells}

    def counts(record: Record, cell: Cell) -> bool:
        if record.key != keys[cell.id] or record.outcome in {"contaminated", *options.retry}:
            return False
        if record.outcome == "skipped":
            return options.keep_skipped
        if record.outcome == "unavailable":
            return reasons[cell.id] is not None
        return record.outcome not in ENDED_BY_LIMITS or record.cell.limits == cell.limits

    done = {
        cell.id: 0 if options.force else sum(counts(record, cell) for record in records) for cell in cells
    }
    planned = []
    for repeat in range(options.repeats):
        for cell in cells:
            if repeat < done[cell.id]:
                continue
            key = keys[cell.id]
            last_run[key] += 1
            planned.append(PlannedRun(cell=cell, key=key, run=last_run[key], reason=reasons[cell.id]))
    return planned
