"""The layout of scenario files against the rest of the program."""

from bench.scenario.catalogue import TASKS
from bench.scenario.cell import Cell
from bench.scenario.layout import SECTIONS, TABLES, fields_of


def test_tables_are_the_parts_of_a_cell() -> None:
    """Every part of a cell is a table of the file, and the sections may be overridden."""
    assert set(Cell.model_fields) - {"id", "scenario", "device"} == set(TABLES)
    assert set(TABLES) - {"model", "method"} == set(SECTIONS)


def test_no_field_shares_its_name_with_a_section() -> None:
    """A model's or method's own keys and the sections it overrides cannot be confused."""
    assert set(SECTIONS).isdisjoint(fields_of("model"))
    assert set(SECTIONS).isdisjoint(fields_of("method"))


def test_catalogue_names_the_tasks_that_exist() -> None:
    """``data.task`` is checked against the built-in tasks without importing what makes them."""
    from bench.training.rows.tasks import TASKS as BUILT_IN

    assert set(TASKS) == set(BUILT_IN)
