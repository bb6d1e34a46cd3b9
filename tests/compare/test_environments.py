"""Records from several places are distinguished and what differs is named."""

from bench.compare.caveats import differences, environments_of
from records_factory import make_environment, make_record

HERE = make_record()
ELSEWHERE = make_record(environment=make_environment(machine={"cpu_model": "Other CPU"}))


def test_one_place_has_one_letter_and_no_difference() -> None:
    """Records of one machine share a letter."""
    here, again = environments_of([HERE, make_record(run=2)])
    assert here is again
    places = [here]
    assert [("A", 2)] == [(where.label, where.records) for where in places]
    assert differences(places) == ()


def test_two_machines_are_lettered_and_what_differs_is_named() -> None:
    """The fact that differs is named with both values; one that is missing is said to be so."""
    places = environments_of([HERE, ELSEWHERE])
    assert ["A", "B"] == [where.label for where in places]
    assert (
        "machine.architecture: x86_64 in A, not recorded in B",
        "machine.cpu_cores: 2 in A, not recorded in B",
        "machine.cpu_model: Example CPU in A, Other CPU in B",
    ) == differences(places)


def test_another_commit_is_named_but_comparable() -> None:
    """A commit between two cells is said, and does not forbid comparing them."""
    later = make_record(environment=make_environment(git={"commit": "fedcba", "dirty": False}))
    places = environments_of([HERE, later, ELSEWHERE])
    assert differences(places[:2]) == ("git.commit: 0123456789ab in A, fedcba in B",)
    assert places[0].place == places[1].place != places[2].place
