"""Scenario files from strangers, by the command's own ``main``: refused in sentences, or sound."""

import copy
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench import cli
from bench.scenario.load import read_document
from replay_bench import FULL

MUTATIONS = 10_000 if FULL else 120
SCENARIOS = Path(__file__).parents[2] / "scenarios"
SHIPPED = sorted(SCENARIOS.glob("*.toml"))
MOST_MEMORY_KIB = 512 * 1024

SMALL = '[models.m]\n{model}\n[methods.lora]\n{method}\n[data]\nsource = "synthetic"\n{rest}\n'
SIZES = [0, -1, 1, 10**9, 10**18, 10**30, float("inf"), float("nan"), 1.5, True, 1e308, 2**31, 2**63]
TEXTS = [
    "",
    "x",
    "../../x",
    "/x",
    "a\0b",
    "x" * 3000,
    "\u202e",
    "CON",
    "..",
    "\x1b[31m",
    "*",
    "cpu",
    "lora",
    "hub",
]
LISTS = [[], [[]], [1, 1], [1, 2], list(range(1, 900)), list(range(1100)), ["sdpa", "eager"], {}, {"a": 1}]
KEYS = [
    "rank",
    "training",
    "data",
    "source",
    "kind",
    "extends",
    "models",
    "overrides",
    "peft",
    "a.b",
    "",
    "x" * 300,
]
SPLICES = [
    b"[",
    b"]",
    b"{",
    b'"',
    b"=",
    b"\n",
    b"[[exclude]]\n",
    b"[models.a]\n",
    b"'''",
    b"[1, 2]",
    b"inf",
    b"-1",
]
SPLICES += [b"9" * 30, b".a" * 40, b"[" * 100, b"\0", b"\xff", b"\xef\xbb\xbf", b"1e999"]

PLACES = st.floats(0, 1, exclude_max=True)
VALUES = st.sampled_from([*SIZES, *TEXTS, *LISTS]) | st.integers() | st.text(max_size=8)
TREE_EDITS = st.lists(
    st.tuples(PLACES, st.sampled_from(["replace", "remove", "add", "rename"]), VALUES, st.sampled_from(KEYS)),
    min_size=1,
    max_size=4,
)
BYTE_EDITS = st.lists(
    st.tuples(PLACES, st.integers(0, 12), st.binary(max_size=8) | st.sampled_from(SPLICES)),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder where copies of scenarios find what they extend; memory stays bounded in it."""
    folder = tmp_path_factory.mktemp("scenarios")
    (folder / "base").symlink_to(SCENARIOS / "base")
    (folder / "smollm2_cpu.toml").symlink_to(SCENARIOS / "smollm2_cpu.toml")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield folder
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY_KIB


def check(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run ``bench cells`` on a file; return its complaints, each a sentence with its place."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["bench", "cells", str(path)])
        try:
            cli.main()
            exit_code: object = 0
        except SystemExit as left:
            exit_code = left.code or 0
    listed, said = capsys.readouterr()
    if exit_code == 0:
        cells = listed.splitlines()
        assert cells
        assert all(cell.isascii() and cell.isprintable() and ".." not in cell.split("/") for cell in cells)
        return []
    complaints = said.splitlines()
    assert exit_code == 2
    assert complaints
    for complaint in complaints:
        assert complaint.startswith(str(path.parent)), complaint
        assert complaint.isprintable(), complaint
        assert complaint.endswith((".", "?")), complaint
    return complaints


def mutated(data: dict[str, Any], edits: list[tuple[float, str, Any, str]]) -> dict[str, Any]:
    """Return a document with values replaced, removed, added and renamed anywhere in its tree."""
    data = copy.deepcopy(data)
    for place, edit, value, name in edits:
        holders = [(holder, key) for holder in _holders(data) for key in _keys(holder)]
        if not holders:
            return data
        holder, key = holders[int(place * len(holders))]
        if edit == "replace":
            holder[key] = copy.deepcopy(value)
        elif edit == "remove":
            del holder[key]
        elif edit == "add" and isinstance(holder, dict):
            holder[name] = copy.deepcopy(value)
        elif isinstance(holder, dict):
            holder[name] = holder.pop(key)
    return data


def _holders(node: Any) -> Iterator[Any]:
    if isinstance(node, dict | list):
        yield node
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _holders(inner)


def _keys(holder: Any) -> list[Any]:
    return list(holder) if isinstance(holder, dict) else list(range(len(holder)))


def as_toml(value: Any) -> str:
    """Return a value as TOML would write it inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


@settings(max_examples=MUTATIONS // 2, deadline=None, suppress_health_check=list(HealthCheck))
@given(shipped=st.sampled_from(SHIPPED), edits=TREE_EDITS)
def test_a_document_with_anything_anywhere_is_refused_in_sentences_or_sound(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    shipped: Path,
    edits: list[tuple[float, str, Any, str]],
) -> None:
    """Whatever stands at whatever key, the exit code is 0 with sound ids, or 2 with complaints."""
    data = mutated(read_document(shipped)[0], edits)
    path = folder / "tree.toml"
    lines = [f"{json.dumps(key)} = {as_toml(value)}\n" for key, value in data.items()]
    path.write_text("".join(lines), encoding="utf-8", errors="replace")
    check(path, capsys, monkeypatch)


@settings(max_examples=MUTATIONS // 2, deadline=None, suppress_health_check=list(HealthCheck))
@given(shipped=st.sampled_from(SHIPPED), edits=BYTE_EDITS)
def test_a_file_with_any_bytes_anywhere_is_refused_in_sentences_or_sound(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    shipped: Path,
    edits: list[tuple[float, int, bytes]],
) -> None:
    """Cut, overwritten and extended, a shipped file ends in the same two ways."""
    content = shipped.read_bytes()
    for place, length, inserted in edits:
        start = int(place * len(content))
        content = content[:start] + inserted + content[start + length :]
    path = folder / "bytes.toml"
    path.write_bytes(content)
    check(path, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("place", "text", "key", "complaint"),
    [
        ("method", "rank = 0", "methods.lora.rank", "greater than or equal to 1"),
        (
            "method",
            "rank = 65",
            "methods.lora.rank",
            "above the hidden size of tiny-llama-test, 64; lower it",
        ),
        ("method", "rank = -8", "methods.lora.rank", "greater than or equal to 1"),
        ("method", "rank = inf", "methods.lora.rank", "must be a finite number"),
        ("method", "rank = 8.0", "methods.lora.rank", "must be an integer, not 8.0"),
        ("method", f"rank = {10**30}", "methods.lora.rank", "at most 64 bits"),
        ("method", "alpha = nan", "methods.lora.alpha", "must be a finite number"),
        ("rest", "[training]\nsequence_length = 513", "training.sequence_length", "beyond the 512 positions"),
        ("rest", f"[training]\nmicro_batch = {10**9}", "training.micro_batch", "less than or equal to 65536"),
        ("rest", f"[window]\nmeasured_steps = {10**18}", "window.measured_steps", "less than or equal to"),
        ("rest", "[window]\nwarmup_steps = -1", "window.warmup_steps", "greater than or equal to 0"),
        ("rest", "[limits]\nhost_memory_gib = 1e300", "limits.host_memory_gib", "less than or equal to"),
        ("rest", "[limits]\ntimeout_s = inf", "limits.timeout_s", "must be a finite number"),
        ("model", "overrides.hidden_size = 0", "models.m.overrides.hidden_size", "whole number from 1 to"),
        ("model", f"overrides.n_layer = {10**9}", "models.m.overrides.n_layer", "whole number from 1 to"),
        ("model", 'overrides.vocab_size = "x"', "models.m.overrides.vocab_size", "whole number from 1 to"),
        ("model", "overrides.head_dim = true", "models.m.overrides.head_dim", "whole number from 1 to"),
    ],
)
def test_an_absurd_size_is_refused_with_file_key_and_line(  # noqa: PLR0917 - a table of cases
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    text: str,
    key: str,
    complaint: str,
) -> None:
    """Nothing is allocated for what no machine holds."""
    parts = {"model": "", "method": "", "rest": "", place: text}
    parts["model"] = f'random = "tiny-llama-test"\n{parts["model"]}'
    path = tmp_path / "s.toml"
    path.write_text(SMALL.format(**parts))
    line = path.read_text().splitlines().index(text.splitlines()[-1]) + 1
    (said,) = check(path, capsys, monkeypatch)
    assert said.startswith(f"{path}:{line}: {key}: ")
    assert complaint in said


def test_more_tokens_at_once_than_fit_anything_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch and a length, each allowed, may be absurd together."""
    path = tmp_path / "s.toml"
    rest = "[training]\nmicro_batch = 65536\nsequence_length = 131072"
    path.write_text(SMALL.format(model='hub = "a/b"', method="", rest=rest))
    (said,) = check(path, capsys, monkeypatch)
    assert "65536 sequences of 131072 tokens are more than 2,147,483,648 at once; lower it." in said


def test_lists_that_multiply_to_trillions_are_refused_before_they_are_expanded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer names the longest lists."""
    many = list(range(1, 1001))
    training = f"[training]\nseed = {many}\nmicro_batch = {many}\n"
    rest = f"{training}[window]\nmeasured_steps = {many}\nwarmup_steps = {many}"
    path = tmp_path / "s.toml"
    path.write_text(SMALL.format(model='random = "tiny-llama-test"', method="", rest=rest))
    (said,) = check(path, capsys, monkeypatch)
    assert "expands into 1,000,000,000,000 cells, more than 20,000; shorten its lists (training.seed" in said


@pytest.mark.parametrize(
    "name", ["../x", "/x", "..", ".", "a/b", "a\\b", "a\0b", "x" * 81, "-x", "\u202ex", "\uff21", ""]
)
@pytest.mark.parametrize("table", ["models", "methods"])
def test_a_name_that_could_leave_the_results_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, table: str, name: str
) -> None:
    """Names become parts of files' names, so they are letters, digits, dots, dashes and underscores."""
    path = tmp_path / "s.toml"
    text = SMALL.format(model='random = "tiny-llama-test"', method='kind = "lora"', rest="")
    header = {"models": "[models.m]", "methods": "[methods.lora]"}[table]
    path.write_text(text.replace(header, f"[{table}.{json.dumps(name)}]"), encoding="utf-8")
    (said,) = check(path, capsys, monkeypatch)
    assert f":{1 if table == 'models' else 3}: {table}." in said


def test_the_real_command_answers_the_same(tmp_path: Path) -> None:
    """In a process of its own: exit code 2 and a sentence, whatever the command; nothing is made."""
    (tmp_path / "s.toml").write_text(SMALL.format(model='random = "gpt2"', method="rank = 0", rest=""))
    for command in ("cells", "plan", "run"):
        done = subprocess.run(
            [sys.executable, "-m", "bench", command, "s.toml"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        said = "s.toml:4: methods.lora.rank: must be greater than or equal to 1, not 0.\n"
        assert (2, "", said) == (done.returncode, done.stdout, done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["s.toml"]
