"""Collecting mistakes and writing them as lines."""

from bench.scenario.diagnostics import MOST_PROBLEMS, Location, Problems, shown, shown_path

_HERE = Location(1, 1, "s.toml")


def test_lines_come_in_file_order_each_once() -> None:
    """Mistakes are told in the order of the files and lines, the same one only once."""
    places: dict[tuple[str | int, ...], Location] = {
        ("b",): Location(1, 7, "s.toml"),
        ("a",): Location(2, 3, "base.toml"),
        ("c",): Location(1, 10, "s.toml"),
    }
    problems = Problems(places, _HERE)
    for path in (("a",), ("c", 0), ("b",), ("b",)):
        problems.add(path, "is wrong")
    problems.add((), "nothing here")
    assert problems.error().problems == [
        "s.toml:1: nothing here.",
        "s.toml:7: b: is wrong.",
        "s.toml:10: c[0]: is wrong.",
        "base.toml:3: a: is wrong.",
    ]


def test_the_nearest_name_is_proposed() -> None:
    """Of the known names the nearest is proposed, and none where nothing is near."""
    problems = Problems({}, _HERE)
    problems.add(("trainig",), "there is no such key here", "trainig", ["training", "data"])
    problems.add(("zzz",), "there is no such key here", "zzz", ["training", "data"])
    assert problems.error().problems == [
        's.toml:1: trainig: there is no such key here. Perhaps you meant "training"?',
        "s.toml:1: zzz: there is no such key here.",
    ]


def test_a_long_list_stops_and_says_so() -> None:
    """A file of thousands of mistakes is told a limited number of them, and told so."""
    problems = Problems({}, _HERE)
    for number in range(1000):
        problems.add((f"key{number}",), "is wrong")
    assert len(problems.error().problems) == MOST_PROBLEMS + 1
    assert problems.error().problems[-1].startswith(f"s.toml: the list stops at {MOST_PROBLEMS} mistakes")


def test_strange_values_are_shown_harmlessly() -> None:
    """Control characters, long texts and monstrous numbers from a stranger's file stay on one short line."""
    assert shown("\x1b[2J\n") == '"\\u001b[2J\\n"'
    assert len(shown("x" * 10_000)) == 61
    assert shown(16**9999) == "a number of thousands of digits"
    assert shown_path(("models", "a b", "rank", 2)) == 'models."a b".rank[2]'
    assert shown_path(("\x1b",)) == '"\\u001b"'
