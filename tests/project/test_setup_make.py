"""The set-up: what make does, what is pinned, and that CI runs what a contributor runs."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [
    Requirement(line) for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
]
PINS = [
    line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"
]


def _dry_run(target: str, *variables: str) -> str:
    """Return what make would do for a target, doing nothing."""
    command = ["make", "--dry-run", "--always-make", target, *variables]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    ).stdout


@pytest.mark.parametrize(
    ("flags", "kind"), [("sse4_2 avx512bw", ""), ("sse4_2 avx2", "_fp32"), (None, "_fp32")]
)
def test_make_run_sets_up_and_runs_the_default_scenario(flags: str | None, kind: str, tmp_path: Path) -> None:
    """A virtual environment, the pinned packages, then the scenario of the README, as this processor can."""
    told = tmp_path / "cpuinfo"
    if flags is not None:
        told.write_text(f"flags\t\t: {flags}\n")
    steps = _dry_run("run", f"CPUINFO={told}")
    order = [
        "-m venv .venv",
        "-c constraints.txt -e '.[test]'",
        f".venv/bin/bench run scenarios/smollm2_cpu{kind}.toml",
    ]
    places = [steps.index(step) for step in order]
    assert sorted(places) == places


@pytest.mark.parametrize(
    "step", ["ruff check", "ruff format --check", "mypy", "lint-imports", "fetch_weights", "pytest"]
)
def test_make_test_checks_everything(step: str) -> None:
    """Lint, format, types, import directions and tests, on the real weights."""
    assert step in _dry_run("test")


def test_the_default_target_is_run() -> None:
    """A bare `make` does what the README shows first."""
    assert (
        "default" not in (ROOT / "Makefile").read_text(encoding="utf-8").split(".DEFAULT_GOAL := ")[0].lower()
    )
    assert ".DEFAULT_GOAL := run" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_package_is_built_checked_and_tried_on_its_own() -> None:
    """The wheel is installed into an environment of its own, and its commands run there."""
    steps = _dry_run("package")
    order = [
        "-m build",
        "twine check --strict",
        "-m venv build/package/venv",
        "--no-deps build/package/*.whl",
    ]
    order += ["venv/bin/bench --version", "venv/bin/bench cells", "venv/bin/bench plan"]
    places = [steps.index(step) for step in order]
    assert sorted(places) == places
    assert "\nmake package\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_a_clone_is_small() -> None:
    """What git would transfer for HEAD and its history, packed: 15 MB at most."""
    pack = subprocess.run(
        ["git", "pack-objects", "--revs", "--stdout", "--thin", "--delta-base-offset", "-q"],  # noqa: S607 - git is on the path
        input=b"HEAD\n",
        capture_output=True,
        check=True,
        cwd=ROOT,
    ).stdout
    assert len(pack) < 15e6


def test_ci_runs_make_test() -> None:
    """CI has no steps of its own, and leaves out no test."""
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "\nmake test\nmake test-slow\n" in script.read_text(encoding="utf-8")
    quick, slow = _dry_run("test"), _dry_run("test-slow")
    assert '-m "not alone and not slow"' in quick
    assert "-m alone" in quick
    assert "-m slow" in slow


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    """constraints.txt names one version of it, and pyproject.toml allows that one."""
    pinned = dict(line.split("==") for line in PINS)
    assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_no_dependency_has_an_upper_bound(requirement: Requirement) -> None:
    """A user's own CUDA build of torch is never replaced by an older one."""
    assert {specifier.operator for specifier in requirement.specifier} == {">="}


def test_pins_are_plain_versions() -> None:
    """No local suffix, no address, no index: they resolve wherever the packages are."""
    assert [line for line in PINS if not re.fullmatch(r"[a-z0-9.-]+==[A-Za-z0-9.]+", line)] == []


def test_a_wheel_holds_every_file_that_is_not_code() -> None:
    """Build tools leave out what no pattern names; a clone would not notice."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    patterns = tools["setuptools"]["package-data"]["bench"]
    files = subprocess.run(["git", "ls-files", "bench"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607 - git of the PATH
    inside = [Path(one).relative_to("bench") for one in files.stdout.split() if not one.endswith(".py")]
    left_out = [one for one in inside if not any(one.match(pattern) for pattern in patterns)]
    assert inside
    assert [] == left_out
