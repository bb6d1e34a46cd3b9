"""Order, keys, resumption: what is run and what is not run again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UsageError
from bench.records.records import Record
from bench.runner.schedule import ScheduledRun, SweepOptions, parse_outcomes, prepare, schedule_runs
from bench.scenario.cell import Cell
from bench.scenario.load import choose_cells
from records_factory import make_environment, make_record
from replay_worker import make_cell, make_facts

A, B = make_cell("ok"), make_cell("oom")


def plan(records: Sequence[Record], *, reason: str | None = None, **options: Any) -> list[tuple[str, int]]:
    """Return the planned runs of cells A and B as pairs of behaviour and run number."""
    prepared = [ScheduledRun(cell=cell, key=cell.digest, reason=reason) for cell in (A, B)]
    planned = schedule_runs(prepared, records, SweepOptions(results=Path(), **options))
    return [(item.cell.method.name, item.run) for item in planned]


def record(cell: Cell, run: int = 1, outcome: str = "ok") -> Record:
    """Return a record of a cell under the key that ``plan`` uses."""
    return make_record(cell=cell, key=cell.digest, run=run, outcome=outcome)


def test_repeats_are_outermost() -> None:
    """Every cell once, then every cell again, so that a drift meets all cells alike."""
    assert plan([], repeats=2) == [("ok", 1), ("oom", 1), ("ok", 2), ("oom", 2)]


@pytest.mark.parametrize("outcome", ["ok", "oom", "timeout", "crashed", "failed"])
def test_a_finished_run_is_not_done_again_whatever_its_outcome(outcome: str) -> None:
    """A failure is a result."""
    assert plan([record(A, outcome=outcome)]) == [("oom", 1)]


def test_a_skipped_run_is_done_once_nothing_is_skipped() -> None:
    """It counts as long as cells are being skipped, and no longer."""
    skipped = [record(A, outcome="skipped"), record(B)]
    assert plan(skipped, skip_unfit=True) == []
    assert plan(skipped) == [("ok", 2)]


def test_repeats_count_what_is_on_disk() -> None:
    """A sweep broken off in its second round goes on there."""
    on_disk = [record(A, 1), record(B, 1), record(A, 2)]
    assert plan(on_disk, repeats=3) == [("oom", 2), ("ok", 3), ("oom", 3)]


def test_retry_runs_only_the_named_outcomes_again_under_a_new_number() -> None:
    """The failed record stays and the new run takes the next number."""
    on_disk = [record(A, 1, "failed"), record(B, 1, "oom")]
    assert plan(on_disk, retry={"failed"}) == [("ok", 2)]
    assert plan([*on_disk, record(A, 2, "ok")], retry={"failed"}) == []


def test_force_adds_a_run_of_every_cell() -> None:
    """Finished runs do not count, but keep their numbers."""
    assert plan([record(A, 1), record(A, 2)], force=True) == [("ok", 3), ("oom", 1)]


def test_unavailable_is_tried_again_only_where_it_became_possible() -> None:
    """The same obstacle is not recorded twice; once it is gone, the cell is run."""
    on_disk = [record(A, 1, "unavailable"), record(B)]
    assert plan(on_disk, reason="no CUDA") == []
    assert plan(on_disk) == [("ok", 2)]


@pytest.mark.parametrize(
    ("outcome", "expected"), [("oom", 2), ("timeout", 2), ("ok", None), ("failed", None)]
)
def test_changed_limits_count_only_for_what_a_limit_can_end(outcome: str, expected: int | None) -> None:
    """Raising the limit that ended a cell and running the same command again runs it again."""
    tighter = make_cell("ok", limits={"timeout_s": 1, "host_memory_gib": 1})
    planned = plan([record(tighter, 1, outcome), record(B)])
    assert planned == ([] if expected is None else [("ok", expected)])


def test_records_under_another_key_do_not_count() -> None:
    """Another version or machine is another measurement."""
    other = make_record(cell=A, key="another")
    assert plan([other, record(B)]) == [("ok", 1)]


def test_the_key_follows_what_shapes_a_measurement() -> None:
    """Cell, versions, processor and, for a CUDA cell, the card change it; the rest does not."""
    environment, facts = make_environment(), make_facts()
    key = prepare(A, environment, facts).key
    newer = make_environment(versions={"python": "3.11.9", "torch": "2.14.0"})
    other_kernel = make_environment(machine=environment.machine | {"kernel": "7.0"})
    other_cpu = make_environment(machine=environment.machine | {"cpu_model": "Other"})
    card = make_facts(cuda_name="NVIDIA A100")
    on_cuda = make_cell("ok", device="cuda")
    assert len(key) == 64
    assert prepare(make_cell("ok", limits={"timeout_s": 1}), environment, facts).key == key
    assert prepare(A, other_kernel, card).key == key
    keys = {
        key,
        prepare(B, environment, facts).key,
        prepare(A, newer, facts).key,
        prepare(A, other_cpu, facts).key,
        prepare(on_cuda, environment, facts).key,
        prepare(on_cuda, environment, card).key,
    }
    assert len(keys) == 6


def test_a_pattern_chooses_cells_across_slashes() -> None:
    """Shell patterns on the whole id, in the scenario's order."""
    assert choose_cells([A, B], "*o*") == [A, B]
    assert choose_cells([A, B], "replay/oom") == [B]
    assert choose_cells([A, B], None) == [A, B]


@pytest.mark.parametrize(("pattern", "near"), [("oom", "replay/oom"), ("replay/okk", "replay/ok")])
def test_a_pattern_without_a_match_names_near_ids(pattern: str, near: str) -> None:
    """A typing mistake costs one look."""
    with pytest.raises(UsageError, match=f"--only {pattern} matches no cell; perhaps you meant .*{near}"):
        choose_cells([A, B], pattern)


def test_outcomes_to_retry_are_checked() -> None:
    """A list with spaces is read, an unknown outcome is refused with the known ones."""
    assert parse_outcomes("failed, oom") == {"failed", "oom"}
    assert parse_outcomes("") == frozenset()
    with pytest.raises(UsageError, match="--retry fail: there is no such outcome; choose from ok, oom"):
        parse_outcomes("fail")
