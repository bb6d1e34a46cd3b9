"""Accuracy over seeds: groups, t-intervals worked out by hand."""

import re

import numpy as np
import pytest

from bench.compare.accuracy import mean_over_seeds, pair
from bench.compare.comparison import compare, measure
from bench.records.records import Record, TextLoss
from bench.report.pages import render_markdown
from bench.scenario.types import FullMethod
from bench.stats.paired import block_design
from records_factory import (
    make_cell,
    make_environment,
    make_evaluation,
    make_measurement,
    make_record,
    make_steps,
)
from seeds_factory import make_run, one_measured, right

T_OF_TWO = 4.302653  # 97.5 % point of Student's t with two degrees of freedom, from a table


def test_mean_and_interval_by_hand() -> None:
    """For 0.90, 0.92, 0.94: s = 0.02, so 0.92 ± 4.303 · 0.02 / √3 = 0.92 ± 0.0497."""
    found = mean_over_seeds([0.90, 0.92, 0.94])
    assert pytest.approx(0.92) == found.mean
    assert pytest.approx((0.92 - 0.049683, 0.92 + 0.049683), abs=1e-6) == (found.low, found.high)


def test_p_value_by_hand() -> None:
    """With two degrees of freedom P(|T| > t) = 1 - t / √(2 + t²); at the interval's edge it is 5 %."""
    found = mean_over_seeds([1.0, 2.0, 3.0])  # t = 2 / (1 / √3)
    t = 2 * 3**0.5
    assert pytest.approx(1 - t / (2 + t**2) ** 0.5) == found.p_value
    assert not found.excludes_zero
    edge = T_OF_TWO / 3**0.5  # the mean at which the interval of a deviation of 1 ends at nought
    assert pytest.approx(0.05, abs=1e-6) == mean_over_seeds([edge - 1, edge, edge + 1]).p_value
    assert mean_over_seeds([edge - 0.9, edge + 0.1, edge + 1.1]).excludes_zero


def test_without_spread_nothing_is_claimed() -> None:
    """One seed has no interval; equal seeds have one without width, and neither is a finding."""
    single, equal = mean_over_seeds([0.5]), mean_over_seeds([0.25, 0.25, 0.25])
    assert (0.5, None, None, None, False) == (
        single.mean,
        single.low,
        single.high,
        single.p_value,
        single.excludes_zero,
    )
    assert (0.25, 0.25, None, False) == (equal.low, equal.high, equal.p_value, equal.excludes_zero)


def test_runs_that_differ_in_the_seed_alone_are_one_row() -> None:
    """Another method, another machine and another length are groups of their own; the name has no seed."""
    runs = [make_run(seed, right(15)) for seed in (2, 0, 1)]
    other = make_run(0, right(15), method="lora-b")
    elsewhere = make_run(0, right(15), environment=make_environment(machine={"cpu_cores": 64}), key="e" * 64)
    rows = measure([*runs, other, elsewhere])
    assert [(0, 1, 2), (0,), (0,)] == [row.seeds for row in rows]
    assert "tiny/lora-r8/b4-s256-task=longest-word" == rows[0].id
    assert ["lora-r8", "lora-b-r8"] == [row.method for row in rows[:2]]
    assert rows[0].setting == rows[1].setting != rows[2].setting


def test_a_seed_without_a_good_run_is_named() -> None:
    """Of several runs of a seed the first good one counts; a seed that only failed is left out and named."""
    failed = make_run(1, right(15), outcome="oom")
    again = make_run(0, right(3), run=2)
    row = one_measured([failed, again, make_run(0, right(15)), make_run(2, right(16))])
    assert ((0, 1, 2), (1,)) == (row.seeds, row.failed_seeds)
    found = row.accuracy("held-out")
    assert found is not None
    assert found.after_seeds is not None
    assert (0.75, 0.8) == found.after_seeds.values


def test_accuracy_states_both_errors() -> None:
    """16, 17 and 18 of 20 right, 5 before: 85 % ± 4.303 · 5 / √3 over seeds, and another error over items."""
    row = one_measured([make_run(seed, right(16 + seed), before=right(5)) for seed in range(3)])
    found = row.accuracy("held-out")
    assert found is not None
    after = found.after_seeds
    assert after is not None
    assert found.change is not None
    change = found.change.difference
    assert ((0, 1, 2), 20, 0.25) == (found.seeds, found.items, found.before)
    assert pytest.approx((0.85, 0.85 - T_OF_TWO * 0.05 / 3**0.5)) == (after.mean, after.low)
    assert pytest.approx((0.60, 0.60 + T_OF_TWO * 0.05 / 3**0.5)) == (change.mean, change.high)
    # Averaged over seeds: 16 items at 1, one at 2/3, one at 1/3, two at 0; their variance over 19.
    squares = 16 * 0.15**2 + (2 / 3 - 0.85) ** 2 + (1 / 3 - 0.85) ** 2 + 2 * 0.85**2
    assert pytest.approx((squares / 19 / 20) ** 0.5) == found.after_error


def test_the_loss_of_several_seeds_is_their_mean() -> None:
    """Over the first run of each; a page says so, and gives the error over items beside the interval."""
    runs = []
    for seed in range(3):
        run = make_run(seed, right(16 + seed))
        steps = tuple(step.replace(loss=step.loss + seed) for step in make_steps())
        runs.append(run.replace(measurement=run.measurement.replace(steps=steps)))
    alone, together = one_measured(runs[:1]).losses, one_measured(runs).losses
    assert alone is not None
    assert together is not None
    assert pytest.approx((alone.first + 1, alone.last + 1)) == (together.first, together.last)
    page = render_markdown(compare(runs))
    assert "Its training loss is their mean" in page
    assert " over 3 seeds, ± 7.4 over items) |" in page


def test_an_interval_of_shares_ends_at_0_and_100_percent() -> None:
    """Over 100 % there is no accuracy: 95, 100 and 100 % of 20 questions."""
    found = one_measured([make_run(seed, right(count)) for seed, count in enumerate((19, 20, 20))])
    after = found.accuracies[0].after_seeds
    assert after is not None
    assert (1.0, True) == (after.high, after.low is not None and after.low > 0.8)


def test_seeds_asked_different_questions_have_the_first_one_and_a_caveat() -> None:
    """No mean over different questions; the caveat says so, and one seed alone has none."""
    records = [make_run(seed, right(15)) for seed in range(2)]
    records += [make_run(seed, right(9, items=19 + seed), method="base") for seed in range(2)]
    rows = {row.method: row for row in compare(records).rows}
    assert [0.75, 9 / 19] == [rows[name].accuracies[0].after for name in ("lora-r8", "base-r8")]
    assert [(0, 1), (0,)] == [rows[name].accuracies[0].seeds for name in ("lora-r8", "base-r8")]
    assert any("not all runs were asked the same" in one.message for one in rows["base-r8"].caveats)
    assert rows["lora-r8"].accuracy("mmlu-281") is None


def test_seeds_are_one_row_with_full_fine_tuning_paired_by_seed() -> None:
    """Three seeds on both sides: one row each, and a difference with an interval over seeds."""
    full = [
        one.replace(cell=one.cell.model_copy(update={"method": FullMethod()}))
        for one in (make_run(seed, right(count), method="a") for seed, count in enumerate((14, 15, 15)))
    ]
    comparison = compare([*full, *(make_run(seed, right(count)) for seed, count in enumerate((15, 16, 17)))])
    base, lora = comparison.rows
    assert (3, 3, "tiny/lora-r8/b4-s256-task=longest-word") == (base.runs, lora.runs, lora.id)
    assert lora.against_full is not None
    one = lora.against_full.accuracy("held-out")
    assert one is not None
    assert pytest.approx(4 / 60) == one.share
    assert ((0, 1, 2), 2) == (one.seeds, one.methods)


def test_a_refusal_can_be_kept_as_a_sentence() -> None:
    """A report shows the reason instead of ending; a reading that is not there needs none."""
    first, second = make_evaluation("before", [True]), make_evaluation("after", [True], task="another")
    paired, reason = pair({0: second}, {0: first}, "held-out")
    assert (None, True) == (paired, str(reason).startswith("not the same questions: 1 changed of 1"))
    assert (None, None) == pair({0: second}, {}, "held-out")


def make_losses(method: str, after: tuple[float, ...]) -> list[Record]:
    """Return a run for each seed that ends with this loss on a text."""
    return [
        make_record(
            cell=make_cell(
                id=f"tiny/{method}-r8/b4-s256-seed={seed}",
                method={"kind": "lora", "name": method, "rank": 8},
                training={"sequence_length": 256, "micro_batch": 4, "seed": seed},
                evaluation={"text": "rows.jsonl"},
            ),
            measurement=make_measurement(evaluations=(), text_loss=TextLoss("rows.jsonl", 90, 2.5, loss)),
        )
        for seed, loss in enumerate(after)
    ]


def test_losses_on_a_text_are_means_and_compared_by_seed() -> None:
    """0.1, 0.1 and 0.09 higher: t = 29 with two degrees of freedom, so p = 1 - 29 / √843; no medians."""
    best, worse = make_losses("dora", (0.1, 0.2, 0.31)), make_losses("lora", (0.2, 0.3, 0.4))
    text = render_markdown(compare([*best, *worse]))
    assert (
        "Lowest loss on rows.jsonl: dora-r8 has 0.203 nats a token after training (0 to 0.464 over 3 seeds)"
        in text
    )
    assert "Significantly higher: lora-r8 (+0.0967, p = 0.001)" in text
    assert "| 0.300 (0.0516 to 0.548 over 3 seeds) |" in text
    level = render_markdown(compare([*best, *make_losses("lora", (0.5, 0.2, 0.3))]))
    assert "No significant difference: lora-r8 (+0.130, p = 0.437)" in level
    alone = render_markdown(compare([best[0], worse[0]]))
    assert "One training run each does not tell how the others differ: lora-r8." in alone


def test_nobody_is_most_accurate_where_all_are_alike() -> None:
    """Two methods with the same answers in every seed; one question more makes one of them the best."""
    runs = [make_run(seed, right(15), method=name) for seed in range(2) for name in ("lora", "dora")]
    assert "- Accuracy on held-out: " in render_markdown(compare(runs))
    ahead = [*runs[:3], make_run(1, right(16), method="dora")]
    assert "- Most accurate on held-out: dora-r8" in render_markdown(compare(ahead))


def test_who_is_picked_as_the_best_is_compared_as_any_pair_is() -> None:
    """Losses by Tukey's test of three methods; answers of one run each by McNemar's p times the pairs."""
    losses = {"dora": (0.1, 0.2, 0.31), "lora": (0.2, 0.3, 0.4), "rslora": (0.5, 0.61, 0.7)}
    found = compare([run for name, after in losses.items() for run in make_losses(name, after)])
    lowest = found.groups[0].lowest_loss
    assert lowest is not None
    p_values = [one.p_value for _, one in lowest.apart]
    design = block_design(np.array([*losses.values()]))
    assert design is not None
    assert pytest.approx([design.p_value_of_any_pair(by) for by in (0.29 / 3, 0.4)]) == p_values
    assert "adjusted for all pairs of these 3 (Tukey)" in render_markdown(found)

    counts = {"lora": 20, "dora": 14, "rslora": 17}
    runs = [make_run(0, right(count), method=name) for name, count in counts.items()]
    told = render_markdown(compare(runs))
    assert "Significantly less accurate" not in told  # of 6 lost and none gained p = 2^-5, times three pairs
    assert "30.0 points, p = 0.094), rslora-r8 (" in told
    assert "15.0 points, p = 0.750)" in told
    assert "adjusted for all pairs of these 3 (Bonferroni)" in told
    two = re.search("Significantly less accurate: dora-r8 (.*)", render_markdown(compare(runs[:2])))
    assert two is not None
    assert "30.0 points, p = 0.031)" in two[1]
    assert "adjusted" not in two[1]


def test_who_is_picked_as_the_most_accurate_is_compared_over_seeds() -> None:
    """By Tukey's test over the seeds that all have, here two of three; where none has two, by questions."""
    counts = {"lora": (20, 19, 20), "dora": (14, 15, 14), "rslora": (17, 19)}
    runs = [
        make_run(seed, right(count), method=name)
        for name, after in counts.items()
        for seed, count in enumerate(after)
    ]
    best = compare(runs).groups[0].most_accurate["held-out"]
    others = [*best.apart, *best.level]
    design = block_design(np.array([[count / 20 for count in after[:2]] for after in counts.values()]))
    assert design is not None
    assert ("lora-r8", 3, {(0, 1)}) == (best.row.method, best.compared, {one.seeds for _, one in others})
    assert pytest.approx(
        {"dora-r8": design.p_value_of_any_pair(0.25), "rslora-r8": design.p_value_of_any_pair(0.075)}
    ) == {row.method: one.p_value for row, one in others}
