"""The table of simulated error rates."""

from dataclasses import replace

from bench.report.self_check import render_self_check
from bench.stats.simulation import CheckRow, SelfCheck

KEPT = CheckRow(
    situation="1 cell, no change",
    event="regression",
    trials=10_000,
    rate=0.0003,
    low=0.0001,
    high=0.0009,
    side="at most",
    bound=0.01,
)

TABLE = """\
| Situation | Verdict | Rate | 99.9 % interval | Promised | Kept | Trials |
| :--- | :--- | ---: | ---: | ---: | ---: | ---: |
| 1 cell, no change | regression | 0.03 % | 0.01 % to 0.09 % | at most 1 % | yes | 10,000 |
| 24 cells | regression of any cell | 5.00 % | 4.00 % to 6.00 % | at most 1 % | NO | 10,000 |
| heavy noise | inconclusive | 50.00 % | 40.00 % to 60.00 % | – | – | 100 |"""  # noqa: RUF001 - as shown


def test_each_rate_stands_beside_its_promise() -> None:
    """Kept, broken, or not promised."""
    broken = replace(KEPT, situation="24 cells", event="any regression", rate=0.05, low=0.04, high=0.06)
    shown = replace(
        KEPT,
        situation="heavy noise",
        event="undecided",
        trials=100,
        rate=0.5,
        low=0.4,
        high=0.6,
        side=None,
        bound=None,
    )
    check = SelfCheck(replications=10_000, rows=(KEPT, broken, shown))
    assert TABLE == render_self_check(check)
    assert (False, True) == (check.holds, SelfCheck(replications=1, rows=(KEPT, shown)).holds)


def test_sweeps_of_unchanged_code_have_a_column_for_each_size() -> None:
    """One broken promise of a row is told, and the rows stand apart from the others."""
    rows = [
        replace(KEPT, situation=name, event="any regression", cells=cells, rate=rate, low=rate / 2)
        for name, rates in (("quiet", (0.0, 0.002)), ("two speeds", (0.001, 0.23)))
        for cells, rate in zip((1, 24), rates, strict=True)
    ]
    page = render_self_check(SelfCheck(replications=10_000, rows=(*rows, KEPT)))
    sweeps, others = page.split("\n\n")
    assert "| Unchanged code | 1 cell | 24 cells | Promised | Kept | Trials each |" in sweeps
    assert "| quiet | 0.00 % | 0.20 % | at most 1 % | yes | 10,000 |" in sweeps
    assert "| two speeds | 0.10 % | 23.00 % | at most 1 % | NO | 10,000 |" in sweeps
    assert "1 cell, no change" in others
    assert "two speeds" not in others
