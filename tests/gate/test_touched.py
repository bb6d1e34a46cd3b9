"""What the sides differ in is known for every kind of side, and so is what of it was loaded."""

import ctypes
import importlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from bench.gate import PROJECT_VARIABLE, _place, run_from_own_sources
from bench.gate.installed import installed
from bench.gate.protocol import Ready
from bench.gate.sides import Side, prepared_sides
from bench.gate.touched import Touched
from bench.records.messages import FetchJob, ProjectLoaded
from gate_projects import make_venv, write_project
from records_factory import make_record

RECORD = make_record()


def opened(side: Side, installed: Mapping[str, str], locations: Mapping[str, Path]) -> Any:
    """Return a side as it tells of itself once it is open."""

    class Process:
        pass

    process = cast("Any", Process())
    process.side = side
    places = {name: str(place) for name, place in locations.items()}
    ready = Ready(environment=RECORD.environment, locations=places, installed=dict(installed))
    return process, ready


def codes(touched: Touched) -> list[str]:
    """Return what is said of a session."""
    return [caveat.code for caveat in touched.caveats()]


def two_projects(tmp_path: Path, changed: str, content: bytes, ignore: tuple[str, ...] = ()) -> Touched:
    """Return what is known of two projects that are alike but for one file."""
    for name in ("base", "candidate"):
        write_project(tmp_path / name, "1.0")
        (tmp_path / name / "src" / "gated_package" / "used.py").touch()
    file = tmp_path / "candidate" / "src" / changed
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    touched = Touched()
    with prepared_sides("./base", "./candidate", here=tmp_path) as sides:
        found = [opened(side, {}, {name: place_of(side, name) for name in side.under_test}) for side in sides]
        touched.opened(found, earlier_runs=False, ignore=ignore)
    return touched


def place_of(side: Side, name: str) -> Path:
    """Return where a side's package or module is."""
    folder = cast("Path", side.first)
    candidates = (folder / name / "__init__.py", folder / f"{name}.py", folder / name)
    return next(path for path in candidates if path.exists())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("gated_package/slow.py", "gated_package/slow.py"),
        ("gated_package/_native.cpython-311-x86_64-linux-gnu.so", "gated_package/_native.cpy"),
        ("gated_package/data/weights.bin", "gated_package/data/weights.bin"),
        ("namespace/part/module.py", "namespace/part/module.py"),
        ("single.py", "single.py"),
    ],
)
def test_a_change_that_nothing_loads_is_nothing_tested(changed: str, named: str, tmp_path: Path) -> None:
    """Modules, native ones, data, parts of namespace packages, single modules."""
    touched = two_projects(tmp_path, changed, b"\0" * 100)
    touched.ran("candidate", ("gated_package/used.py",))
    (caveat,) = touched.caveats()
    assert caveat.code == "nothing-tested"
    assert named in caveat.message


def test_what_a_gate_ignores_need_not_be_loaded_and_all_else_still_does(tmp_path: Path) -> None:
    """A change of tests alone ends with the verdict of the runs, said to be one; a second change does not."""
    codes_found: list[str] = []
    messages: list[str] = []
    for ignore in (("gated_package/tests/*",), ("gated_package/tests/*.txt",)):
        folder = tmp_path / str(len(messages))
        folder.mkdir()
        touched = two_projects(folder, "gated_package/tests/test_it.py", b"", ignore=ignore)
        touched.ran("candidate", ("gated_package/used.py",))
        (caveat,) = touched.caveats()
        codes_found.append(caveat.code)
        messages.append(caveat.message)
    assert codes_found == ["nothing-else-changed", "nothing-tested"]
    assert "in nothing but gated_package/tests/test_it.py, which gate.ignore has left out" in messages[0]


def test_a_change_that_a_worker_told_of_was_tested(tmp_path: Path) -> None:
    """By the name that the gate knows it by; and where a worker told nothing, nothing is claimed."""
    touched = two_projects(tmp_path, "single.py", b"")
    touched.ran("candidate", ("single.py",))
    assert [] == codes(touched)
    touched = two_projects(tmp_path, "other.py", b"")
    touched.ran("candidate", None)
    assert [] == codes(touched)


@pytest.mark.parametrize("how", ["a library in C", "another process"])
def test_what_python_does_not_see_being_opened_the_kernel_does(how: str, tmp_path: Path) -> None:
    """Data that a library in another language, or a process that the script starts, reads."""
    touched = two_projects(tmp_path, "gated_package/data.bin", b"123")
    touched.ran("candidate", ())
    file = tmp_path / "candidate" / "src" / "gated_package" / "data.bin"
    if how == "another process":
        subprocess.run(["cat", str(file)], check=True, capture_output=True)  # noqa: S607 - coreutils
    else:
        libc = ctypes.CDLL(None)
        os.close(libc.open(os.fsencode(file), os.O_RDONLY))
    assert [] == codes(touched)


def test_environments_are_told_apart_by_what_their_packages_are(tmp_path: Path) -> None:
    """Names as installed; whichever a worker has imported, of those that differ, was tested."""
    for name in ("one", "other"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "python").touch()
    with prepared_sides("./one", "./other", here=tmp_path) as (base, candidate):
        for imported, found in ((("torch",), ["nothing-tested"]), (("torch", "mine"), [])):
            touched = Touched()
            first = opened(base, {"mine": "a", "torch": "a", "bench": "a"}, {})
            second = opened(candidate, {"mine": "b", "torch": "a", "bench": "b"}, {})
            touched.opened([first, second], earlier_runs=False)
            touched.ran("base", (), imported)
            assert found == codes(touched)


def test_a_package_that_was_edited_or_is_imported_from_elsewhere_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editable install, PYTHONPATH, or an editor in site-packages: versions stay, contents do not."""
    environment = make_venv(tmp_path / "venv", all_packages=False)
    (packages,) = environment.glob("lib/python*/site-packages")
    for name in ("mine", "theirs"):
        (packages / name).mkdir()
        (packages / name / "__init__.py").write_text("one = 1\n")
        info = packages / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "top_level.txt").write_text(name)
        (info / "RECORD").write_text(f"{name}/__init__.py,sha256=abc,8\n{name}-1.0.dist-info/RECORD,,\n")
    os.utime(packages / "theirs" / "__init__.py", (1e9, 1e9))

    def installed_at(*folders: Path) -> dict[str, str]:
        with monkeypatch.context() as only:
            only.setattr(sys, "path", [*map(str, folders), sysconfig.get_path("stdlib")])
            importlib.invalidate_caches()
            return installed()

    before = installed_at(packages)
    os.utime(packages / "mine" / "__init__.py", (2e9, 2e9))
    edited = installed_at(packages)
    assert {"mine"} == {name for name in before if edited[name] != before[name]}
    (tmp_path / "path" / "theirs").mkdir(parents=True)
    (tmp_path / "path" / "theirs" / "__init__.py").write_text("two = 2\n")
    elsewhere = installed_at(tmp_path / "path", packages)
    assert {"theirs"} == {name for name in before if elsewhere[name] != edited[name]}


def test_a_worker_tells_of_modules_namespace_packages_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the gate names them; a package that was not imported has no file that was."""
    for path in ("single.py", "spaced/part.py", "whole/__init__.py", "whole/inner.py", "idle/__init__.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("single", "spaced.part", "whole"):
        importlib.import_module(name)
    monkeypatch.setenv(PROJECT_VARIABLE, "single,spaced,whole,idle")
    monkeypatch.setattr("bench.workers.child.do_job", lambda _job, _send: None)
    said: list[Any] = []
    run_from_own_sources(FetchJob(model_json="{}"), said.append)
    for name in ("single", "spaced.part", "spaced", "whole"):
        sys.modules.pop(name, None)
    assert [ProjectLoaded(files=("single.py", "spaced/part.py", "whole/__init__.py"))] == said


def test_a_place_is_where_the_links_on_its_way_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a folder is one, the file itself, or the way to where a relative name begins."""
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "real" / "inner" / "file.py").touch()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "again").symlink_to(tmp_path / "link" / "inner")
    (tmp_path / "real" / "other.py").symlink_to("again/file.py")
    monkeypatch.chdir(tmp_path / "link")
    here = str(tmp_path / "link")
    ways = ("inner/file.py", "again/file.py", "other.py", "again/../other.py", "./other.py", "gone/file.py")
    for way in (*(f"{here}/{each}" for each in ways), *ways, "/", str(tmp_path)):
        assert os.path.realpath(way) == _place(way)
