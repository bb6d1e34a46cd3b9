"""What every test can use: the ``--gpu`` option and the factory of made-up records."""

from collections.abc import Callable

import pytest

import records_factory
from bench.results.records import Record


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--gpu``; without it no test touches a GPU."""
    parser.addoption("--gpu", action="store_true", help="also run the tests that need a CUDA device")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip GPU tests unless they are asked for."""
    if config.getoption("--gpu"):
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; run pytest --gpu on a machine that has one")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """Return the factory ``records_factory.make_record``."""
    return records_factory.make_record
