"""Local files that change under the same name."""

from pathlib import Path

from bench.runner.schedule import inputs_digest
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
