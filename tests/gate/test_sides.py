"""Package versions laid over the environment: installed once, really imported, unmet requirements named."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from bench.errors import InfrastructureError
from bench.gate.references import overlay, told_of, unmet_by
from bench.records.requirements import installed
from gate_projects import make_wheel


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is pip's only source, with a cache of its own beside it."""
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "wheels"


def test_an_overlay_is_installed_once_and_hides_what_lies_beneath(wheels: Path) -> None:
    """The second time pip has nothing to do with it; python imports what pip has put there."""
    make_wheel(wheels, "gated-package", "1.5")
    pins = [("gated-package", "1.5")]
    folder = overlay(pins)
    for wheel in wheels.iterdir():
        wheel.unlink()
    assert folder == overlay(pins)
    assert folder.with_name(f"{folder.name}.lock").exists()  # not one for all releases like 1.5.x
    code = (
        "import gated_package, importlib.metadata as metadata;"
        "print(gated_package.__version__, metadata.version('gated-package'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1.5 1.5" == done.stdout.strip()


def test_companions_come_along_and_are_told(wheels: Path) -> None:
    """What the environment lacks, and what it has in a version that does not do; what does is left alone."""
    make_wheel(wheels, "gated-package", "1.5", ["companion-package>=2", "msgspec<0.19", "packaging>=20"])
    make_wheel(wheels, "companion-package", "2.5")
    make_wheel(wheels, "msgspec", "0.18")
    folder = overlay([("gated-package", "1.5")])
    assert (folder / "companion_package").is_dir()
    assert not (folder / "packaging").exists()
    (told, *_) = told_of(folder, {"gated-package": "1.5"})
    with_it = "companion-package 2.5 (none without), msgspec 0.18 ("
    assert f"Laid over besides, as pip finds gated-package 1.5 to need it: {with_it}" in told.message


def test_a_version_that_the_environment_has_is_laid_over_it_all_the_same(wheels: Path) -> None:
    """Pip has nothing to install then, and the side is still the version that was asked for."""
    make_wheel(wheels, "msgspec", metadata.version("msgspec"))
    folder = overlay([("msgspec", metadata.version("msgspec"))])
    assert (folder / "msgspec").is_dir()
    assert [] == [each for each in told_of(folder, {"msgspec": ""}) if each.code == "companions"]


def test_a_companion_that_is_nowhere_is_named(wheels: Path) -> None:
    """Pip's sentence about it, not the one that points to its manual."""
    make_wheel(wheels, "gated-package", "1.5", ["companion-package>=2"])
    with pytest.raises(InfrastructureError, match="companion-package"):
        overlay([("gated-package", "1.5")])


def test_what_pip_cannot_have_is_its_last_line(wheels: Path) -> None:
    """And nothing half installed stays to be taken for an overlay the next time."""
    pins = [("gated-package", "6.6")]
    with pytest.raises(
        InfrastructureError, match=r"pip cannot install gated-package==6\.6 \(No matching dist"
    ):
        overlay(pins)
    assert [] == [path for path in (wheels.parent / "cache" / "overlays").iterdir() if path.is_dir()]


def test_requirements_that_an_overlay_leaves_unmet_are_named(tmp_path: Path) -> None:
    """Its own, and those of others on it; what has nothing to do with it is not ours to tell."""
    beneath, over = tmp_path / "beneath", tmp_path / "over"
    for folder, name, version, requires in (
        (beneath, "gated-package", "2.0", []),
        (beneath, "user", "1.0", ["gated-package>=2", "gone"]),
        (over, "gated-package", "1.0", ["torch-like>=3", "extra-like; extra == 'all'", "user"]),
    ):
        subprocess.run(
            [
                sys.executable,
                "-m",
                "zipfile",
                "-e",
                str(make_wheel(tmp_path, name, version, requires)),
                str(folder),
            ],
            check=True,
        )
    assert (
        "gated-package 1.0 needs torch-like>=3, and it is not installed.",
        "user 1.0 needs gated-package>=2, and gated-package 1.0 is there.",
    ) == unmet_by(installed([str(over)]), installed([str(beneath)]))
