"""Who is on the frontier, against the definition and against cases that can be seen at once."""

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.compare.comparison import compare
from bench.compare.highlights import dominators
from bench.records.records import Record
from bench.scenario.cell import Cell
from records_factory import (
    MIB,
    make_cell,
    make_evaluation,
    make_ledger,
    make_measurement,
    make_record,
    make_steps,
)


def make(name: str, memory: int, speed: float, right: int, **cell: object) -> Record:
    """Return a run with so much memory in MiB, so many tokens/s and so many of 20 questions right."""
    measurement = make_measurement(
        ledger=make_ledger(memory * MIB),
        steps=make_steps((speed,) * 8),
        evaluations=(make_evaluation("after", [index < right for index in range(20)]),),
    )
    return make_record(cell=_cell(name, **cell), key=_key(name), measurement=measurement)


def _cell(name: str, **cell: object) -> Cell:
    return make_cell(id=f"tiny/{name}/b4-s256", **cell)


def _key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def dominated(*records: Record) -> dict[str, str | None]:
    """Return who dominates each method, in the only frontier."""
    (one,) = compare(records).frontiers
    above = {key: row.method for key, row in one.dominated_by.items()}
    return {row.method: above.get(row.key) for row in one.rows}


def test_a_cell_is_dominated_by_one_that_is_as_good_in_all_and_better_in_one() -> None:
    """Worse in all or equal in two is dominated; better in any of the three is not, nor is an equal."""
    found = dominated(
        make("best", 100, 1000, 15),
        make("worse", 200, 900, 10),
        make("slower", 100, 900, 15),
        make("smarter", 300, 500, 16),
        make("equal", 100, 1000, 15),
    )
    assert {"best": None, "worse": "best", "slower": "best", "smarter": None, "equal": None} == found


def test_only_cells_of_one_model_and_data_are_set_against_each_other() -> None:
    """Another task is another frontier, and one cell alone is none."""
    other = {"source": "task", "task": "largest-number"}
    records = (make("a", 100, 1000, 15), make("b", 200, 900, 10), make("c", 300, 800, 5, data=other))
    (one,) = compare(records).frontiers
    assert ["a", "b"] == [row.method for row in one.rows]
    assert ("held-out", "ledger") == (one.task, one.instrument)


def test_a_cell_without_a_reading_is_left_out_and_counted() -> None:
    """No speed, no place; and without a task that all share accuracy is not considered."""
    fast = make_steps((2000.0,) * 8)
    unevaluated = make_measurement(ledger=make_ledger(100 * MIB), steps=fast, evaluations=())
    silent = make_measurement(ledger=make_ledger(50 * MIB), steps=())
    records = (
        make("a", 100, 1000, 15),
        make_record(cell=_cell("b"), key=_key("b"), measurement=unevaluated),
        make_record(cell=_cell("c"), key=_key("c"), measurement=silent),
    )
    (one,) = compare(records).frontiers
    assert (1, None) == (one.left_out, one.task)
    assert {"a": "b", "b": None} == dominated(*records)


SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))


@settings(deadline=None)
@given(st.lists(SIZES, min_size=2, max_size=7))
def test_the_frontier_is_what_its_definition_says(points: list[tuple[int, int, int]]) -> None:
    """Against all pairs: dominated if and only if some cell is as good in all three and not the same."""
    by_name = {str(index): (-m, float(s), r / 4) for index, (m, s, r) in enumerate(points)}
    found = dominators(by_name)
    for name, point in by_name.items():
        better = {
            other
            for other, theirs in by_name.items()
            if theirs != point and all(a >= b for a, b in zip(theirs, point, strict=True))
        }
        assert found[name] in better if better else name not in found
