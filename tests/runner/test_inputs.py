"""Local files that change under the same name."""

import json
from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.runner.schedule import inputs_digest, require_data
from tiny_cells import tiny_cell


def test_a_changed_data_file_is_another_input(tmp_path: Path) -> None:
    """The content counts, not the name; a missing file has a digest too."""
    data = tmp_path / "rows.jsonl"
    cell = tiny_cell(data={"source": "jsonl", "path": str(data), "format": "text", "template": "plain"})
    missing = inputs_digest(cell)
    data.write_text('{"text": "one"}\n')
    one = inputs_digest(cell)
    data.write_text('{"text": "two"}\n')
    assert len({missing, one, inputs_digest(cell)}) == 3


def test_a_text_that_is_evaluated_is_an_input(tmp_path: Path) -> None:
    """Another content is another run; one that is not there is told before anything is loaded."""
    text = tmp_path / "general.txt"
    cell = tiny_cell(evaluation={"text": str(text)})
    with pytest.raises(UsageError, match=r"evaluation\.text: .*general\.txt does not exist; name a \.txt"):
        require_data([cell])
    text.write_text("one")
    one = inputs_digest(cell)
    text.write_text("two")
    assert one not in {None, inputs_digest(cell)}
    assert require_data([cell]) == []
    assert inputs_digest(tiny_cell(evaluation={"text": "mmlu-281"})) is None


def test_rows_that_are_asked_about_are_an_input(tmp_path: Path) -> None:
    """They are read as those that are trained on, before anything is loaded."""
    for name in ("rows", "others"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "1 + 1 =", "completion": " 2"}\n')
    data = {
        "source": "jsonl",
        "path": str(tmp_path / "rows.jsonl"),
        "held_out": str(tmp_path / "others.jsonl"),
    }
    cell = tiny_cell(data=data, evaluation={"tasks": ["held-out"]})
    before = inputs_digest(cell)
    assert any("others.jsonl" in line for line in require_data([cell]))
    (tmp_path / "others.jsonl").write_text('{"prompt": "1 + 1 =", "completion": " 3"}\n')
    assert before not in {None, inputs_digest(cell)}
    (tmp_path / "others.jsonl").unlink()
    with pytest.raises(UsageError, match=r"Cannot read the data file .*others\.jsonl .*; name another file"):
        require_data([cell])


def test_changed_weights_are_another_input(tmp_path: Path) -> None:
    """A file of another size in the model's folder changes the digest."""
    cell = tiny_cell(model={"random": None, "path": str(tmp_path)})
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = inputs_digest(cell)
    (tmp_path / "model.safetensors").write_bytes(b"12")
    assert before != inputs_digest(cell)


def test_a_cell_that_reads_no_local_file_has_no_digest() -> None:
    """Built-in tasks and catalogued weights are named by the scenario alone."""
    assert inputs_digest(tiny_cell()) is None


def test_the_source_of_a_user_s_loop_is_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module counts by its content, and one in a package with all of the package; nothing is imported."""
    monkeypatch.chdir(tmp_path)
    module, inside = (tiny_cell(loop={"driver": f"{name}:train"}) for name in ("mine", "mine.loops.plain"))
    missing = inputs_digest(module)
    (tmp_path / "mine.py").write_text("raise SystemExit")
    assert missing not in {None, inputs_digest(module)}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "helpers.py").write_text("raise SystemExit")
    before = inputs_digest(inside)
    (tmp_path / "mine" / "helpers.py").write_text("raise SystemExit(1)")
    assert before not in {None, inputs_digest(inside)}


def test_held_out_prose_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    """And so is a row without a question."""
    prose = json.dumps({"prompt": "Why?", "completion": "so it goes " * 9})
    (tmp_path / "rows.jsonl").write_text(prose)
    for text, said in (
        (prose, "have 27 words or more"),
        ('{"text": "x"}', "line 1: data.held_out asks"),
    ):
        (tmp_path / "held_out.jsonl").write_text(text)
        data = {
            "source": "jsonl",
            "path": str(tmp_path / "rows.jsonl"),
            "held_out": str(tmp_path / "held_out.jsonl"),
        }
        with pytest.raises(UsageError, match=said):
            require_data([tiny_cell(data=data, evaluation={"tasks": ["held-out"]})])
