"""Faults of the results folder under the real ``bench run``: full, read-only, removed, replaced."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.records.store import MIN_FREE_BYTES, load_records, write_record
from records_factory import make_record
from replay_bench import FULL, ReplayBench, scenario

STAGED = scenario("ok", "staged")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk of its own, with little more room than a run asks for to begin."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mounted(folder, f"size={MIN_FREE_BYTES + 1024**2}"):
        pytest.skip("only the superuser may mount a small disk; the limit on file sizes is tested anyway")
    yield folder
    unmount(folder)


def mounted(folder: Path, options: str) -> bool:
    """Mount a disk in memory; tell whether that was allowed."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return shutil.which("mount") is not None and not subprocess.run(command, check=False).returncode


def unmount(folder: Path) -> None:
    """Take it away again."""
    subprocess.run(["umount", "-l", str(folder)], check=True)  # noqa: S607 - wherever it lies


def kept_record(said: str) -> Path:
    """Return the file that a message says a finished run was kept in."""
    return Path(said.partition("the finished run was kept: move ")[2].partition(" into the folder")[0])


def begin(folder: Path, results: Path, prelude: str = "") -> ReplayBench:
    """Start a sweep of a cell that ends at once and one that waits to be told; return it when that waits."""
    (folder / "s.toml").write_text(STAGED)
    running = ReplayBench(
        folder,
        "run",
        "s.toml",
        "--results",
        str(results),
        prelude=f"import os\n{prelude}",
        stdin=subprocess.DEVNULL,
    )
    running.wait_for("staged-r8/b1-s512-seed=0 run 1: evaluate_after")
    return running


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def end_stage(folder: Path) -> None:
    """Let the waiting cell end well."""
    (folder / "go").touch()


def assert_nothing_is_lost(folder: Path, results: Path, running: ReplayBench, why: str) -> None:
    """One sentence, exit code 4, the run kept; moved to where it belongs, nothing is left to do."""
    exit_code, said = running.finish()
    assert exit_code == 4
    assert said.count("\n") == 1
    assert said.startswith(f"bench: {why}")
    assert said.endswith(" into the folder, then run the same command again\n")
    kept = kept_record(said)
    assert running.leaves_no_process()
    results.mkdir(exist_ok=True)
    shutil.move(kept, results / kept.name)
    kept.parent.rmdir()
    loaded = load_records(results)
    assert loaded.problems == ()
    assert "staged" in {record.cell.method.name for record in loaded.records}
    if not FULL:
        return
    with ReplayBench(folder, "run", "s.toml", "--results", str(results)) as again:
        again.wait_for("0 runs to do, 2 on disk already" if len(loaded.records) == 2 else "1 run to do")
        assert again.finish()[0] == 0


def test_a_disk_that_fills_during_a_run_costs_no_finished_run(tmp_path: Path, small_disk: Path) -> None:
    """The cell that ended is kept where temporary files are, and the records before it are whole."""
    results = small_disk / "results"
    with begin(tmp_path, results) as running:
        filler = small_disk / "filler"
        fill(filler)
        assert len(load_records(results).records) == 1
        end_stage(tmp_path)
        running.wait_until_ended()
        filler.unlink()
        why = f"cannot write to the results folder {results} (No space left on device); free some space; "
        assert_nothing_is_lost(tmp_path, results, running, why)


def test_a_disk_without_room_is_refused_before_anything_runs(tmp_path: Path, small_disk: Path) -> None:
    """What is there and what is needed is said in one sentence."""
    (small_disk / "filler").write_bytes(b"x" * 2 * 1024**2)
    (tmp_path / "s.toml").write_text(STAGED)
    with ReplayBench(tmp_path, "run", "s.toml", "--results", str(small_disk / "results")) as running:
        exit_code, said = running.finish()
    assert (exit_code, said.count("\n")) == (4, 1)
    assert f"bytes are free on the disk of {small_disk}/results; free at least {MIN_FREE_BYTES}" in said


LIMITED = """
import resource
from bench.records import store
before = store.write_record
def limited(folder, record):
    if record.cell.method.name == "staged" and "results" in str(folder):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        return before(folder, record)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.write_record = limited
"""


def test_a_write_that_breaks_off_leaves_no_torn_record(tmp_path: Path) -> None:
    """The kernel refuses the rest of a file: what was written of it is gone, the run is kept elsewhere."""
    results = tmp_path / "results"
    with begin(tmp_path, results, LIMITED) as running:
        end_stage(tmp_path)
        running.wait_until_ended()
        assert [path.name for path in results.iterdir() if "staged" in path.name] == []
        why = f"cannot write to the results folder {results} (File too large); raise the limit on the size of"
        assert_nothing_is_lost(tmp_path, results, running, why)


@pytest.mark.parametrize("replaced_by", ["a link", "nothing"] if FULL else ["a link"])
def test_a_folder_that_is_gone_or_replaced_is_not_written_to(tmp_path: Path, replaced_by: str) -> None:
    """Nothing is written to where a link leads, and the finished run is kept."""
    results, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with begin(tmp_path, results) as running:
        if replaced_by == "nothing":
            shutil.rmtree(results)
        else:
            results.rename(tmp_path / "moved")
            results.symlink_to(elsewhere)
        end_stage(tmp_path)
        running.wait_until_ended()
        assert list(elsewhere.iterdir()) == []
        if replaced_by == "a link":
            results.unlink()
            (tmp_path / "moved").rename(results)
        why = f"the results folder {results} was removed or replaced meanwhile; the finished run was kept"
        assert_nothing_is_lost(tmp_path, results, running, why)


def test_a_read_only_folder_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """One sentence says what to do; for a superuser, who may write anywhere, the disk itself is read-only."""
    results = tmp_path / "results"
    results.mkdir(mode=0o555)
    (tmp_path / "s.toml").write_text(STAGED)
    if os.geteuid() == 0 and not mounted(results, "ro"):
        pytest.skip("a superuser who may not mount can write to every folder")
    with ReplayBench(tmp_path, "run", "s.toml", "--results", str(results)) as running:
        exit_code, said = running.finish()
    if os.geteuid() == 0:
        unmount(results)
    assert exit_code == 4
    assert said.startswith(f"bench: cannot write to the results folder {results} (")
    assert said.endswith("); choose a folder you may write to with --results\n")
    assert list(results.iterdir()) == []


def test_what_cannot_be_read_is_put_aside_and_never_overwritten(tmp_path: Path) -> None:
    """A record of a newer version in the place of a run stays, under another name, however often."""
    path = write_record(tmp_path, make_record())
    for content in ("newer", "damaged"):
        path.write_text(content)
        write_record(tmp_path, make_record())
    asides = {aside.name: aside.read_text() for aside in tmp_path.iterdir() if aside != path}
    assert asides == {f"{path.name}.old": "newer", f"{path.name}.old1": "damaged"}
    assert load_records(tmp_path).records == (make_record(),)
