"""What is imported when: the command line starts light, and folders import in one direction only."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.records.records import encode_record
from records_factory import make_record

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "lm_eval", "accelerate", "datasets")
# Runs the command line in a fresh interpreter, then says on the last line which heavy packages came in.
PROBE = """
import sys
from bench.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print()
print("imported:", *sorted({name.partition(".")[0] for name in sys.modules} & set(%r)))
"""


def _imported(names: tuple[str, ...], *arguments: str) -> list[str]:
    """Return which of the named packages a command has imported."""
    command = [sys.executable, "-c", PROBE % (names,), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.splitlines()[-1].removeprefix("imported:").split()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["report", "--help"], ["cells", "--help"]]
)
def test_help_imports_neither_torch_nor_pandas(arguments: list[str]) -> None:
    """Asking for help costs no second."""
    assert _imported((*HEAVY, "pandas", "scipy", "numpy"), *arguments) == []


def test_the_first_page_needs_no_rich() -> None:
    """Rich takes longer to import than all that the first page needs."""
    assert _imported(("rich", "markdown_it", "pydantic"), "--help") == []


def test_listing_cells_imports_neither_torch_nor_pandas() -> None:
    """What would run is known without what runs it."""
    assert _imported((*HEAVY, "pandas"), "cells", "scenarios/smollm2_cpu.toml") == []


def test_processes_that_tests_start_run_this_checkout(tmp_path: Path) -> None:
    """Wherever they start, and whichever checkout is installed in the environment."""
    command = [sys.executable, "-c", "import bench; print(bench.__file__)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert str(ROOT / "bench" / "__init__.py") == done.stdout.strip()


@pytest.mark.parametrize("command", ["table", "report"])
def test_reading_results_imports_no_torch(tmp_path: Path, command: str) -> None:
    """A report can be made where torch is not even installed."""
    (tmp_path / "record.json").write_bytes(encode_record(make_record()))
    assert _imported(HEAVY, command, str(tmp_path)) == []


def test_folders_import_in_one_direction() -> None:
    """The contracts of pyproject.toml hold."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
