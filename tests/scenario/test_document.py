"""Reading scenario files: extends, merging, where keys stand, and what cannot be read."""

import os
from pathlib import Path

import pytest

from bench.errors import ScenarioError
from bench.scenario.diagnostics import Location
from bench.scenario.load import MAX_BYTES, read_document


def _write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(files))}.toml"


def _problem(path: Path) -> str:
    with pytest.raises(ScenarioError) as refused:
        read_document(path)
    (problem,) = refused.value.problems
    return problem


def test_child_wins_and_every_key_remembers_its_file(tmp_path: Path) -> None:
    """Tables are merged key by key over three files, lists are replaced, and locations follow the winner."""
    child = _write(
        tmp_path,
        child='extends = "middle.toml"\n[training]\nseed = 3\n',
        middle='extends = "base.toml"\n[training]\nseed = 2\nmicro_batch = [1, 2]\n',
        base='title = "base"\n[training]\nmicro_batch = [7, 8, 9]\ndtype = "fp32"\n',
    )
    data, problems = read_document(child)
    assert data == {
        "title": "base",
        "training": {"seed": 3, "micro_batch": [1, 2], "dtype": "fp32"},
    }
    expected = {
        ("training", "seed"): Location(1, 3, str(child)),
        ("training", "micro_batch", 1): Location(2, 4, str(tmp_path / "middle.toml")),
        ("training", "dtype"): Location(3, 4, str(tmp_path / "base.toml")),
    }
    assert expected == {path: problems.locate(path) for path in expected}


def test_another_source_replaces_the_table_it_extends(tmp_path: Path) -> None:
    """A table that changes its source or kind takes nothing over from the extended file."""
    child = _write(
        tmp_path,
        child='extends = "base.toml"\n[data]\nsource = "synthetic"\n[methods.a]\nkind = "lora"\nrank = 2\n',
        base='[data]\nsource = "task"\ntask = "longest-word"\n[methods.a]\nkind = "lora"\nalpha = 3\n',
    )
    assert read_document(child)[0] == {
        "data": {"source": "synthetic"},
        "methods": {"a": {"kind": "lora", "alpha": 3, "rank": 2}},
    }


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    """A file saved by an editor on Windows has the same keys on the same lines."""
    path = tmp_path / "w.toml"
    path.write_bytes(b"\xef\xbb\xbftitle = 'x'\r\n\r\ndevice = 'cpu'\r\n")
    data, problems = read_document(path)
    assert data == {"title": "x", "device": "cpu"}
    assert problems.locate(("device",)).line == 3


def test_circle_of_extends_is_refused(tmp_path: Path) -> None:
    """Files that extend one another in a circle are refused where the circle closes."""
    path = _write(tmp_path, a='\nextends = "b.toml"\n', b='extends = "a.toml"\n')
    assert _problem(path) == (
        f'{tmp_path}/b.toml:1: extends: "a.toml" extends this file in turn; break the circle.'
    )


def test_a_long_chain_of_extends_is_refused(tmp_path: Path) -> None:
    """A chain of more than ten files is refused."""
    for number in range(12):
        _write(tmp_path, **{f"s{number}": f'extends = "s{number + 1}.toml"\n'})
    assert "more than 10 files extend one another" in _problem(tmp_path / "s0.toml")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('"/etc/base.toml"', "must be a .toml file relative to this one"),
        ('"../secret.txt"', "must be a .toml file relative to this one"),
        ("3", "must be a file name in quotes, not 3"),
        ('["a.toml"]', "must be a file name in quotes"),
        ('"none.toml"', "does not exist"),
        ('"a\\u0000.toml"', "cannot be"),
        ('"loop.toml"', "cannot be"),
        ('"pipe.toml"', "is not a regular file"),
        ('"folder.toml"', "is a folder"),
    ],
)
def test_wrong_extends_is_one_line(tmp_path: Path, value: str, expected: str) -> None:
    """Whatever extends names, the answer is one line that begins with the place."""
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    path = _write(tmp_path, s=f"# first\nextends = {value}\n")
    problem = _problem(path)
    assert problem.startswith(f"{path}:2: extends: ")
    assert expected in problem


def test_syntax_error_is_told_with_its_line(tmp_path: Path) -> None:
    """What tomllib refuses is told as file, line and reason."""
    path = _write(tmp_path, s='title = "x"\n\n[data\nsource = 3\n')
    assert _problem(path).startswith(f"{path}:3: not TOML: expected ']' at the end of a table declaration")


def test_syntax_error_at_the_end_points_to_the_last_line(tmp_path: Path) -> None:
    """A text that breaks off has its last line named."""
    path = _write(tmp_path, s='a = 1\nb = """\n')
    assert _problem(path).startswith(f"{path}:3: not TOML: ")


def test_syntax_error_of_an_extended_file_names_that_file(tmp_path: Path) -> None:
    """A mistake in a base is told in the base."""
    path = _write(tmp_path, s='extends = "base.toml"\n', base="x\n")
    assert _problem(path).startswith(f"{tmp_path}/base.toml:1: not TOML: ")


@pytest.mark.parametrize("text", ["a = " + "[" * 3000, "a" + ".a" * 3000 + " = 1"])
def test_deep_nesting_is_refused(tmp_path: Path, text: str) -> None:
    """A file made to exhaust the parser is refused by its nesting."""
    assert _problem(_write(tmp_path, s=text)).endswith("nested more than 32 levels deep; flatten it.")


def test_integer_of_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    """An integer that Python will not read is no traceback."""
    assert "not TOML: Exceeds the limit" in _problem(_write(tmp_path, s="a = " + "9" * 5000))


def test_files_that_cannot_be_scenarios(tmp_path: Path) -> None:
    """Missing files, folders, other encodings and huge files are one sentence each."""
    missing = tmp_path / "none.toml"
    assert _problem(missing) == f"{missing} does not exist; check the path."
    assert _problem(tmp_path) == f"{tmp_path} is a folder; name a file (.toml)."
    latin = tmp_path / "latin.toml"
    latin.write_bytes("# a\ntitle = 'é'".encode("latin-1"))
    assert _problem(latin) == f"{latin}:2: byte 13 is not UTF-8; save the file as UTF-8."
    huge = tmp_path / "huge.toml"
    huge.write_bytes(b"#" * (MAX_BYTES + 1))
    assert "larger than 1,048,576 bytes" in _problem(huge)
    assert "is not a regular file" in _problem(Path("/dev/zero"))
