"""Records from several places as one set."""

from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.records.records import encode_record
from bench.records.store import gather
from records_factory import make_record


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_folders_and_files_are_one_set_and_a_copy_counts_once(tmp_path: Path) -> None:
    """The same run in two folders is one record; another run is another."""
    first = _write(tmp_path / "a" / "one.json", encode_record(make_record()).decode())
    _write(tmp_path / "b" / "copy.json", encode_record(make_record()).decode())
    second = _write(tmp_path / "c" / "two.json", encode_record(make_record(run=2)).decode())
    loaded = gather([first.parent, tmp_path / "b", second])
    assert ([1, 2], ()) == ([record.run for record in loaded.records], loaded.problems)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A damaged file beside a good one is a problem, not an end."""
    _write(tmp_path / "one.json", encode_record(make_record()).decode())
    _write(tmp_path / "two.json", "{")
    loaded = gather([tmp_path])
    assert (1, 1) == (len(loaded.records), len(loaded.problems))
    assert "two.json" in loaded.problems[0]


def test_nothing_to_read_is_a_usage_error(tmp_path: Path) -> None:
    """No path, and a folder without records, both say what to do."""
    with pytest.raises(UsageError, match="name at least one"):
        gather([])
    with pytest.raises(UsageError, match="no record found"):
        gather([tmp_path])
