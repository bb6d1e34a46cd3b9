"""Accuracy over seeds: groups, t-intervals worked out by hand."""

import pytest

from bench.compare.environments import environment_groups
from bench.compare.seeds import accuracy_over_seeds, group_by_seed, mean_over_seeds, over_seeds
from records_factory import make_environment
from seeds_factory import make_run, one_group, right

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
    assert not found.excludes_nought
    edge = T_OF_TWO / 3**0.5  # the mean at which the interval of a deviation of 1 ends at nought
    assert pytest.approx(0.05, abs=1e-6) == mean_over_seeds([edge - 1, edge, edge + 1]).p_value
    assert mean_over_seeds([edge - 0.9, edge + 0.1, edge + 1.1]).excludes_nought


def test_without_spread_nothing_is_claimed() -> None:
    """One seed has no interval; equal seeds have one without width, and neither is a finding."""
    single, equal = mean_over_seeds([0.5]), mean_over_seeds([0.25, 0.25, 0.25])
    assert (0.5, None, None, None, False) == (
        single.mean,
        single.low,
        single.high,
        single.p_value,
        single.excludes_nought,
    )
    assert (0.25, 0.25, None, False) == (equal.low, equal.high, equal.p_value, equal.excludes_nought)


def test_runs_that_differ_in_the_seed_alone_are_one_group() -> None:
    """Another method, another machine and another length are groups of their own; the name has no seed."""
    runs = [make_run(seed, right(15)) for seed in (2, 0, 1)]
    other = make_run(0, right(15), method="lora-b")
    elsewhere = make_run(0, right(15), environment=make_environment(machine={"cpu_cores": 64}))
    groups = group_by_seed([*runs, other, elsewhere])
    assert [(0, 1, 2), (0,), (0,)] == [tuple(group.runs) for group in groups]
    assert "tiny/lora-r8/b4-s256-task=longest-word" == groups[0].name
    assert ["lora-r8", "lora-b-r8"] == [group.method for group in groups[:2]]
    assert groups[0].setting == groups[1].setting != groups[2].setting


def test_a_seed_without_a_good_run_is_named() -> None:
    """Of several runs of a seed the first good one counts; a seed that only failed is left out and named."""
    failed = make_run(1, right(15), outcome="oom")
    again = make_run(0, right(3), run=2)
    group = one_group([failed, again, make_run(0, right(15)), make_run(2, right(16))])
    assert ((0, 2), (1,)) == (tuple(group.runs), group.failed_seeds)
    found = accuracy_over_seeds(group, "held-out")
    assert found is not None
    assert (0.75, 0.8) == found.after.values


def test_accuracy_states_both_errors() -> None:
    """16, 17 and 18 of 20 right, 5 before: 85 % ± 4.303 · 5 / √3 over seeds, and another error over items."""
    group = one_group([make_run(seed, right(16 + seed), before=right(5)) for seed in range(3)])
    found = accuracy_over_seeds(group, "held-out")
    assert found is not None
    assert found.change is not None
    assert found.before is not None
    assert ((0, 1, 2), 20, 0.25) == (found.seeds, found.items, found.before.mean)
    assert pytest.approx((0.85, 0.85 - T_OF_TWO * 0.05 / 3**0.5)) == (found.after.mean, found.after.low)
    assert pytest.approx((0.60, 0.60 + T_OF_TWO * 0.05 / 3**0.5)) == (found.change.mean, found.change.high)
    # Averaged over seeds: 16 items at 1, one at 2/3, one at 1/3, two at 0; their variance over 19.
    squares = 16 * 0.15**2 + (2 / 3 - 0.85) ** 2 + (1 / 3 - 0.85) ** 2 + 2 * 0.85**2
    assert pytest.approx((squares / 19 / 20) ** 0.5) == found.items_error


def test_groups_of_several_seeds_are_listed() -> None:
    """One line a task; seeds that were asked different questions have a sentence in place of a mean."""
    records = [make_run(seed, right(15)) for seed in range(2)]
    records += [make_run(seed, right(9, items=19 + seed), method="base") for seed in range(2)]
    records += [make_run(0, right(15), method="alone")]
    found = over_seeds(records, environment_groups(records))
    assert [("A", "held-out"), ("A", "held-out")] == [(one.environment, one.task) for one in found]
    assert found[0].accuracy is not None
    assert 0.75 == found[0].accuracy.after.mean
    assert found[1].accuracy is None
    assert found[1].why_not is not None
    assert "not all runs were asked the same questions" in found[1].why_not
    assert () == over_seeds(records[:1], environment_groups(records[:1]))
    assert accuracy_over_seeds(group_by_seed(records)[0], "mmlu-281") is None
