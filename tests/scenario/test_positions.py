"""Line numbers of TOML keys, checked against tomllib's own reading of the same text."""

import tomllib
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.scenario.diagnostics import MAX_DEPTH, NestingError, Path, key_lines

_LINES = (
    'title = "a # not a comment"',
    'long = """',
    "[not.a.table]",
    'x = 1"""" # four quotes: one is inside',
    "'quoted key'.b.\"c\\u0064\" = 1",
    '[models."smollm2-1.7b"]   # header',
    "hub = 'x'",
    "point = { x = 1, y.z = [2, 3] }",
    "[[exclude]]",
    'model = "a"',
    "[[exclude]]",
    "ranks = [",
    "  8, # eight ]",
    "",
    "  [16, '''",
    "]'''],",
    "]",
    "[exclude.inner]",
    "k = 1979-05-27T07:32:00Z",
    "[ a . b ]",
    "c.d = -inf",
)


def _paths(value: object, path: Path = ()) -> set[Path]:
    """Return the path of everything inside a parsed document."""
    inside: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value))
    return {(*path, key) for key, _ in inside}.union(*(_paths(one, (*path, key)) for key, one in inside))


def test_indented_headers_have_their_own_lines() -> None:
    """What stands under one is not taken for its parent's."""
    lines = key_lines("[methods]\n\n  [methods.lora]\n\t rank = 8\n\n \n\t[[exclude]]\n  model = 1\n")
    assert lines["methods", "lora"] == 3
    assert lines["methods", "lora", "rank"] == 4
    assert lines["exclude", 0, "model"] == 8


def test_every_kind_of_key_has_its_line() -> None:
    """Dotted, quoted and inline keys, arrays over several lines and arrays of tables all get their line."""
    lines = key_lines("\n".join(_LINES))
    assert _paths(tomllib.loads("\n".join(_LINES))) == set(lines)
    expected = {
        ("title",): 1,
        ("long",): 2,
        ("quoted key", "b", "cd"): 5,
        ("models",): 6,
        ("models", "smollm2-1.7b", "hub"): 7,
        ("models", "smollm2-1.7b", "point", "y", "z", 1): 8,
        ("exclude",): 9,
        ("exclude", 0, "model"): 10,
        ("exclude", 1): 11,
        ("exclude", 1, "ranks", 0): 13,
        ("exclude", 1, "ranks", 1, 1): 15,
        ("exclude", 1, "inner", "k"): 19,
        ("a", "b", "c", "d"): 21,
    }
    assert expected == {path: lines[path] for path in expected}


_KEYS = st.sampled_from(["a", "b", "c-1", '"d e"', "'f.g'", '"\\u0041"', "1"])
_DOTTED = st.lists(_KEYS, min_size=1, max_size=3).map(" . ".join)
_SCALARS = st.sampled_from(
    [
        "1",
        "-1.5e3",
        "true",
        '"x]"',
        "'y#'",
        '"""\nz = 1\n"""',
        "'''\n[t]\n'''",
        '""""q"""""',
        "07:32:00",
        "nan",
    ]
)
_GAPS = st.sampled_from(["", " ", "\n", " # ] comment\n", "\n\n"])
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.tuples(st.lists(inner, max_size=3), _GAPS, st.booleans()).map(
            lambda made: (
                "[" + made[1] + f",{made[1]}".join(made[0]) + ("," if made[2] and made[0] else "") + "]"
            )
        ),
        st.lists(st.tuples(_DOTTED, inner), max_size=2).map(
            lambda made: "{ " + ", ".join(f"{key} = {value}" for key, value in made) + " }"
        ),
    ),
    max_leaves=5,
)
_STATEMENTS = st.one_of(
    st.tuples(_DOTTED, _VALUES).map(lambda made: f"{made[0]} = {made[1]}"),
    _DOTTED.map(lambda key: f"[{key}]"),
    _DOTTED.map(lambda key: f"[[ {key} ]] # comment"),
    st.just("# comment"),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(_STATEMENTS, max_size=8).map("\n".join))
@example("a = [{ b = 1 }, { b = 2 }]\n[[c]]\n[[c.d]]\n[[c.d]]\n[c.d.e]\n[[c]]\n[[c.d]]")
def test_whatever_tomllib_reads_has_the_same_keys(text: str) -> None:
    """For any text that is TOML, exactly the keys that tomllib finds have a line, and it is in the text."""
    try:
        parsed = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        parsed = None
    lines = key_lines(text)
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())
    if parsed is not None:
        assert _paths(parsed) == set(lines)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab.=[]{}\"'#,\\ \n1", max_size=40))
def test_any_text_is_survived(text: str) -> None:
    """No text makes the scanner fail otherwise than by its own error."""
    assert isinstance(key_lines(text), dict)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000,
        ".".join(["a"] * 5000) + " = 1",
        "[" + "a." * 5000 + "b]",
        "a = " + "{a=" * 5000,
        "[" + "a." * 5000 + "b",
        "a." * 5000 + "b",
    ],
)
def test_deep_nesting_is_refused_before_it_costs_anything(text: str) -> None:
    """Nesting that would take a parser's stack or quadratic time is an error with its line."""
    with pytest.raises(NestingError, match=f"more than {MAX_DEPTH} levels") as refused:
        key_lines("\n\n" + text)
    assert refused.value.line == 3


@pytest.mark.parametrize(
    "text",
    [
        "k = " + '"' * 2**18,
        "k = " + "[" * 8 + "]" * 2**18,
        "k = '" + "\\" * 2**18,
        "# " * 2**17,
        "[[a]]\n" * 2**15,
        "a" * 2**18,
        "k = [" + "1," * 2**15 + "]",
        '"' + '\\"' * 2**17,
        "a=1\n" * 2**15,
        "k = {" + "a=1," * 2**15 + "b=1}",
    ],
)
def test_long_texts_are_scanned_in_one_pass(text: str) -> None:
    """A quarter of a megabyte of anything awkward ends, without recursion or a blow-up of the patterns."""
    assert isinstance(key_lines(text), dict)
