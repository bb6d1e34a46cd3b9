"""Faults planted in a copy of the checkout, one at a time, are found by the test named beside each.

They are listed in planted_faults.toml; two quick ones are planted by default, all with PLANTED_FAULTS=full.
"""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED, LINKED = ("bench", "tests"), ("results", "scenarios")
TESTS_FAILED = 1  # above it pytest's exit codes are interrupts, errors of its own and a wrong selection


@dataclass(frozen=True, kw_only=True)
class Fault:
    """In ``file`` of bench/ ``old`` becomes ``new``; then ``test`` of tests/ has to fail."""

    name: str
    file: str
    old: str
    new: str
    test: str
    quick: bool = False


FAULTS = tuple(
    Fault(**fields)
    for fields in tomllib.loads(Path(__file__).with_name("planted_faults.toml").read_text("utf-8"))["fault"]
)
PLANTED = tuple(fault for fault in FAULTS if fault.quick or os.environ.get("PLANTED_FAULTS") == "full")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of the checkout in which nothing is planted yet."""
    root = tmp_path / "checkout"
    for name in COPIED:
        shutil.copytree(ROOT / name, root / name)
    shutil.copy(ROOT / "pyproject.toml", root)
    for name in LINKED:
        (root / name).symlink_to(ROOT / name)
    return root


def run_tests(root: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """Run tests of a copy on that copy, with a cache of its own and no plugin that they do without."""
    environment = {
        "PYTHONPATH": str(root),
        "FINETUNE_BENCH_CACHE": str(root / "cache"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    options = ("-x", "-q", f"--rootdir={root}", "-p", "no:cacheprovider", "-p", "pytest_timeout")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=root,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_each_fault_has_one_place_and_a_test() -> None:
    """What a fault replaces stands once in its file, and the test that is to find it exists."""
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 20
    for fault in FAULTS:
        assert (ROOT / "bench" / fault.file).read_text("utf-8").count(fault.old) == 1, fault.name
        file, _, name = fault.test.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, fault.name


@pytest.mark.timeout(3600)
def test_without_a_fault_the_tests_pass_in_a_copy(checkout: Path) -> None:
    """So what fails with a fault planted fails by that fault."""
    run = run_tests(checkout, *dict.fromkeys(f"tests/{fault.test}" for fault in PLANTED))
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("fault", PLANTED, ids=[fault.name for fault in PLANTED])
def test_a_planted_fault_is_found(checkout: Path, fault: Fault) -> None:
    """The test named beside a fault fails where the fault is planted."""
    file = checkout / "bench" / fault.file
    file.write_text(file.read_text("utf-8").replace(fault.old, fault.new), "utf-8")
    run = run_tests(checkout, f"tests/{fault.test}")
    assert run.returncode == TESTS_FAILED, run.stdout + run.stderr
