"""What an hour of each card costs, by a table of the user's."""

from pathlib import Path

from bench.errors import UsageError
from bench.scenario.catalogue import cards
from bench.scenario.diagnostics import shown
from bench.scenario.load import read_document

MOST_AN_HOUR = 1e6


def read_prices(path: Path) -> dict[str, float]:
    """Return prices by the catalogue's name of a card, from a file of lines such as ``rtx4090 = 0.5``.

    Raises ``ScenarioError`` with every mistake, and ``UsageError`` for a file without a price.
    """
    data, problems = read_document(path)
    for name, price in data.items():
        if name not in cards():
            problems.add((name,), "is no card of the catalogue", name, tuple(cards()))
        elif type(price) not in {int, float} or not 0 < price <= MOST_AN_HOUR:
            wrong = f"must be a price an hour, above zero and up to {MOST_AN_HOUR:,.0f}, not {shown(price)}"
            problems.add((name,), wrong)
    if problems:
        raise problems.error()
    if not data:
        raise UsageError(f"{path} holds no price; write lines such as rtx4090 = 0.5")
    return {name: float(price) for name, price in data.items()}
