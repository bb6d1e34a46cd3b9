"""How numbers and strangers' text are written."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.compare.accuracy import CONFIDENCE
from bench.report.text import (
    GIBIBYTES,
    MEBIBYTES,
    duration,
    markdown,
    operations,
    p_value,
    plain,
    seconds,
    share,
    significant,
    small_share,
)
from bench.stats.paired import SIGNIFICANT_P


def test_memory_has_one_unit_and_its_digits() -> None:
    """MiB whole, GiB with two decimals, n/a for what was not measured."""
    assert ("1,024 MiB", "1.50 GiB", "n/a", "0 MiB") == (
        MEBIBYTES.show(2**30),
        GIBIBYTES.show(3 * 2**29),
        GIBIBYTES.show(None),
        MEBIBYTES.show(0),
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "n/a"), (0.0, "0"), (1234.5, "1,234"), (12.345, "12.3"), (0.01234, "0.0123"), (-5.0, "−5.00")],  # noqa: RUF001 - a minus sign
)
def test_three_significant_digits(value: float | None, expected: str) -> None:
    """No exponent, thousands separated, a true minus."""
    assert expected == significant(value)


def test_operations_have_the_unit_that_suits_them() -> None:
    """A toy's million and a model's billions are both readable."""
    assert ("0.952 MFLOP", "0.812 GFLOP", "14.0 GFLOP", "n/a") == (
        operations(952_000.0),
        operations(8.12e8),
        operations(1.4e10),
        operations(None),
    )


def test_not_a_number_is_shown_as_such() -> None:
    """A diverged loss is not hidden."""
    assert ("nan", "inf") == (significant(float("nan")), significant(float("inf")))


def test_shares_times_and_p_values() -> None:
    """Percentages with a space, seconds with two decimals, tiny p-values as a bound."""
    assert ("43.2 %", "−5 %", "n/a") == (share(0.432), share(-0.05, 0), share(None))  # noqa: RUF001 - a minus sign
    assert ("0.363 %", "100 %", "0.00012 %") == (small_share(0.00363), small_share(1.0), small_share(1.2e-6))
    assert ("2.50 s", "n/a") == (seconds(2_500_000_000), seconds(None))
    assert ("p < 0.001", "p = 0.012") == (p_value(1e-9), p_value(0.0123))


def test_a_p_value_that_is_significant_is_written_below_the_level() -> None:
    """0.0096 is below 0.01 and must not read as 0.010, nor 0.0496 as 0.050."""
    assert ["p = 0.009", "p = 0.0096", "p = 0.0099", "p = 0.010", "p = 0.0496", "p = 0.050"] == [
        p_value(value) for value in (0.0094, 0.0096, 0.00999, 0.01, 0.0496, 0.05)
    ]
    assert pytest.approx((SIGNIFICANT_P, 1 - CONFIDENCE)) == (0.01, 0.05)


@pytest.mark.parametrize(
    ("time_ns", "expected"),
    [
        (None, "n/a"),
        (0, "0 s"),
        (0.26, "0.260 ns"),
        (220.4, "220 ns"),
        (-3_456.0, "−3.46 µs"),  # noqa: RUF001 - a minus sign
        (999_960, "1.00 ms"),
        (15_300_000, "15.3 ms"),
        (999_600_000, "1.00 s"),
        (2_500_000_000, "2.50 s"),
        (7_200_000_000_000, "7,200.00 s"),
    ],
)
def test_a_duration_keeps_three_significant_digits(time_ns: float | None, expected: str) -> None:
    """From a fraction of a nanosecond to hours: no measured time is shown as 0.00 s."""
    assert expected == duration(time_ns)


def test_a_short_time_among_long_ones_is_not_shown_as_nought() -> None:
    """Columns in seconds keep two decimals, and say 4 ms where those would all be 0."""
    assert ("4.00 ms", "0.01 s", "0.00 s") == (seconds(4_000_000), seconds(10_000_000), seconds(0))


@pytest.mark.parametrize(
    ("hostile", "expected"),
    [
        ("a|b", r"a\|b"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("<!-- bench:end -->", "&lt;!-- bench:end --&gt;"),
        ("a\nb\r\n| c |", r"a b \| c \|"),
        ("[click](https://example.org)", r"\[click\](https:\//example.org)"),
        ("`code` *bold* $x$", r"\`code\` \*bold\* \$x\$"),
        ("logits_proj _em_", r"logits_proj \_em\_"),
        ("back\\slash|", r"back\\slash\|"),
        ("&lt;", "&amp;lt;"),
        ("\x1b[31mred\u202egnp", r"\[31mred gnp"),
    ],
)
def test_text_of_a_stranger_stays_text(hostile: str, expected: str) -> None:
    """No cell, tag, comment, link, code, emphasis, formula or control character comes of it."""
    assert expected.strip() == markdown(hostile)


@settings(deadline=None)
@given(st.text())
def test_escaped_text_never_breaks_a_table_row(text: str) -> None:
    """Whatever the text, it is one line without a bare bar or an angle bracket."""
    escaped = markdown(text)
    assert len(escaped.splitlines()) <= 1
    assert not set("<>") & set(escaped)
    bars = [index for index, letter in enumerate(escaped) if letter == "|"]
    for index in bars:
        backslashes = len(escaped[:index]) - len(escaped[:index].rstrip("\\"))
        assert backslashes % 2 == 1


@settings(deadline=None)
@given(st.text())
def test_plain_text_has_no_control_characters(text: str) -> None:
    """A terminal sees no escape sequence."""
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in plain(text))
