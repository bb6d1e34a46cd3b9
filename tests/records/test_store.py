"""Records on disk: atomic, named when damaged, confined to their folder, one writer at a time."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.errors import InfrastructureError, UsageError
from bench.records.records import Record
from bench.records.store import load_records, open_folder, record_file_name, write_record

MakeRecord = Callable[..., Record]


def test_a_written_record_is_read_back_unchanged(tmp_path: Path, make_record: MakeRecord) -> None:
    """What is loaded equals what was written, and no temporary file is left."""
    record = make_record()
    with open_folder(tmp_path):
        path = write_record(tmp_path, record)
    assert load_records(tmp_path).records == (record,)
    assert load_records(path).records == (record,)
    assert [item.name for item in tmp_path.iterdir() if item.name != ".lock"] == [record_file_name(record)]


def test_a_loss_that_is_not_a_number_survives(tmp_path: Path, make_record: MakeRecord) -> None:
    """NaN and infinity, which JSON lacks, come back as they were."""
    record = make_record()
    steps = list(record.measurement.steps)
    steps[0] = steps[0].replace(loss=float("nan"), gradient_norm=float("inf"))
    measurement = record.measurement.replace(steps=tuple(steps))
    path = write_record(tmp_path, record.replace(measurement=measurement))
    json.loads(path.read_text(), parse_constant=pytest.fail)  # strict JSON, without a bare NaN
    loaded = load_records(tmp_path).records[0].measurement.steps[0]
    assert (str(loaded.loss), str(loaded.gradient_norm)) == ("nan", "inf")


def test_no_name_leaves_the_folder(tmp_path: Path, make_record: MakeRecord) -> None:
    """A hostile id or key becomes an ordinary file name inside the folder."""
    record = make_record()
    cell = record.cell.model_copy(update={"id": "../../etc/" + "x" * 400 + "\0/…"})
    hostile = record.replace(cell=cell, key="../../../etc/passwd")
    path = write_record(tmp_path, hostile)
    assert path.resolve().parent == tmp_path.resolve()
    assert len(path.name.encode()) < 255


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty; delete it"),
        (b'{"schema_version": 1, "cell": {', "is cut off or not JSON"),
        (b"\xff\xfe{}", "is not UTF-8 text"),
        (b'{"schema_version": 99}', "was written by a newer finetune-bench (record version 99"),
        (b'{"schema_version": 1}', "is not a valid record (Object missing required field `cell`)"),
        (b'{"answer": 42}', "is not a record (it has no schema_version)"),
        (b"[" * 100_000, "is not a valid record (nested too deeply)"),
        (b"[]", "is not a record"),
    ],
)
def test_a_damaged_file_is_named_and_the_others_are_read(
    tmp_path: Path, make_record: MakeRecord, content: bytes, complaint: str
) -> None:
    """Each way a file can be damaged gives one line that names it, and costs no other record."""
    record = make_record()
    write_record(tmp_path, record)
    damaged = tmp_path / "damaged--12345678--r1.json"
    damaged.write_bytes(content)
    loaded = load_records(tmp_path)
    assert loaded.records == (record,)
    assert len(loaded.problems) == 1
    assert loaded.problems[0].startswith(f"{damaged}: {complaint}")
    assert "\n" not in loaded.problems[0]


def test_links_and_pipes_are_not_opened(tmp_path: Path, make_record: MakeRecord) -> None:
    """A link out of the folder is not followed, and a named pipe does not block."""
    folder = tmp_path / "results"
    folder.mkdir()
    outside = write_record(tmp_path, make_record())
    (folder / "link.json").symlink_to(outside)
    os.mkfifo(folder / "pipe.json")
    loaded = load_records(folder)
    assert loaded.records == ()
    assert [problem.split(":")[1][:15] for problem in loaded.problems] == [" is a link or n"] * 2


def test_the_same_run_twice_is_named(tmp_path: Path, make_record: MakeRecord) -> None:
    """A copied file does not count as a second run."""
    path = write_record(tmp_path, make_record())
    (tmp_path / "z-copy.json").write_bytes(path.read_bytes())
    loaded = load_records(tmp_path)
    assert len(loaded.records) == 1
    assert "holds the same run as" in loaded.problems[0]


def test_records_come_oldest_first(tmp_path: Path, make_record: MakeRecord) -> None:
    """The order is that of the sweep, not of the file names."""
    for run, day in ((1, 3), (2, 1), (3, 2)):
        write_record(tmp_path, make_record(run=run, started_at=f"2026-11-0{day}T00:00:00+00:00"))
    assert [record.run for record in load_records(tmp_path).records] == [2, 3, 1]


def test_no_folder_is_a_usage_error(tmp_path: Path) -> None:
    """A path without records says what to give instead."""
    with pytest.raises(UsageError, match="neither a results folder nor a record"):
        load_records(tmp_path / "nothing")


def test_a_second_writer_is_refused_and_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    """While one process writes, another says so; once it is gone, however it went, the folder is free."""
    code = (
        "import sys, time; from pathlib import Path; from bench.records.store import open_folder\n"
        "with open_folder(Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(InfrastructureError, match="another bench run is writing"), open_folder(tmp_path):
            pytest.fail("two writers at once")
        holder.kill()
    with open_folder(tmp_path):
        pass


def test_a_full_disk_leaves_no_torn_record(
    tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk fills during a write, one sentence says so and nothing half-written stays."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InfrastructureError, match=r"No space left on device\); free some space"):
        write_record(tmp_path, make_record())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_found_before_anything_runs(tmp_path: Path) -> None:
    """A results path below a file is refused on opening."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InfrastructureError, match="choose a folder you may write to"),
        open_folder(tmp_path / "file" / "results"),
    ):
        pytest.fail("opened")


def test_left_over_temporary_files_are_removed(tmp_path: Path) -> None:
    """What a killed run was writing does not pile up."""
    (tmp_path / ".torn.json.tmp").write_text("{")
    with open_folder(tmp_path):
        assert not (tmp_path / ".torn.json.tmp").exists()
