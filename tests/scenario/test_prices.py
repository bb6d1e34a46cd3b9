"""Prices of cards by a file of the user's: every mistake is named with its line."""

from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.scenario.load import read_prices


def test_prices_are_read_by_the_name_of_the_card(tmp_path: Path) -> None:
    """Whole numbers and fractions."""
    path = tmp_path / "prices.toml"
    path.write_text("rtx4090 = 0.45\nh200 = 4\n")
    assert read_prices(path) == {"rtx4090": 0.45, "h200": 4.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no price; write lines such as"),
        ("rtx490 = 1", r'prices.toml:1: rtx490: is no card of the catalogue.*Perhaps you meant "rtx4090"'),
        ("h200 = true", "h200: must be a price an hour, above zero and up to 1,000,000, not true"),
        ("h200 = -1", "above zero and up to 1,000,000, not -1"),
        ("h200 = nan", "above zero"),
        ("h200 = 1e308", "up to 1,000,000, not 1e"),
        ("[h200]\nprice = 1", "above zero"),
    ],
)
def test_what_is_no_price_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """Of an unknown card the nearest is named."""
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(BenchError, match=message):
        read_prices(path)
