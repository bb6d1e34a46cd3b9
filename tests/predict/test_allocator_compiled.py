"""Compiled functions: kept on disk under their sources, and working where nothing can be written."""

import runpy
from pathlib import Path

import pytest

from bench.predict.allocator import compiled


def test_machine_code_is_kept_in_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled entry leaves an index there, in a folder named after the sources."""
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled, "_folder", compiled._folder.__wrapped__)
    assert not compiled.is_kept()
    assert 3 == compiled.compiled_entry(_sum)(1, 2)
    assert compiled.is_kept()
    (folder,) = (tmp_path / "compiled").iterdir()
    assert [True] == [path.is_file() for path in folder.rglob("*_sum*.nbi")]


def test_without_a_place_to_keep_it_the_function_still_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the cache folder cannot be made, each process compiles for itself."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(compiled, "_folder", lambda: str(tmp_path / "file" / "inside"))
    assert 3 == compiled.compiled_entry(_sum)(1, 2)


def _sum(one: int, other: int) -> int:
    return one + other


def test_sources_that_are_reached_by_a_link_are_compiled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a gate's sides reach bench: the second finds what the first has kept."""
    monkeypatch.setattr(compiled, "_folder", lambda: str(tmp_path / "kept"))
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "sums.py").write_text("def added(one, two):\n    return one + two\n")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("real", "link"):
        added = compiled.compiled_entry(runpy.run_path(str(tmp_path / name / "sums.py"))["added"])
        assert 3 == added(1, 2)
    assert 1 == len([*(tmp_path / "kept").rglob("*.nbi")])
