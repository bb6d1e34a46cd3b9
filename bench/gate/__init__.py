"""Measuring for a gate: two environments, the *sides*, run cell by cell in turn (A B B A …) in one session.

``gate_references`` and ``calibrate`` of ``gate.py`` run sessions (``session.py``) and judge them. What
decides is in ``bench.compare``, and what shows it in ``bench.report``.

Each side runs from its own sources, and this is the first of them that its processes import. The finder of
setuptools' editable installs also serves submodules that the package itself lacks, so an older revision would
be completed with the modules of a newer one (setuptools/command/editable_wheel.py, ``_FINDER_TEMPLATE``).
"""

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench
from bench.gate import integrity

if TYPE_CHECKING:
    from bench.records.messages import Job, Send

SOURCES_VARIABLE = "FINETUNE_BENCH_SOURCES"
"""Names of the packages that a side imports from sources, with commas between them; unset elsewhere."""

PROJECT_VARIABLE = "FINETUNE_BENCH_PROJECT"
"""Names of the packages that either side imports from sources, with commas between them."""

JUDGE_VARIABLE = "FINETUNE_BENCH_JUDGE"
"""The folder of the bench that a side measures with; set, it asks workers whether that is what they ran."""

_opened: set[str] = set()


def forget_editable_installs() -> None:
    """Strike the packages out of what such finders map to folders."""
    packages = [name for name in os.environ.get(SOURCES_VARIABLE, "").split(",") if name]
    for finder in sys.meta_path:
        module = sys.modules.get(getattr(finder, "__module__", type(finder).__module__))
        mapping = getattr(module, "MAPPING", None)
        if isinstance(mapping, dict):
            for name in packages:
                mapping.pop(name, None)


def run_from_own_sources(job: "Job", send: "Send") -> None:
    """Do a worker's job; one that was not forked from the server keeps to its sources from here on.

    At the end it says which files of the project under test it has loaded, and what was done to bench in it.
    """
    from bench.records.messages import ProjectLoaded
    from bench.workers.child import do_job

    forget_editable_installs()
    try:
        do_job(job, send)
    finally:
        if os.environ.get(PROJECT_VARIABLE) is not None:
            files = _loaded(job)
            if judge := os.environ.get(JUDGE_VARIABLE):
                imported = tuple(sorted({name.partition(".")[0] for name in sys.modules}))
                send(ProjectLoaded(files=files, imported=imported, altered=integrity.altered(Path(judge))))
            else:
                send(ProjectLoaded(files=files))


def located(package: str) -> dict[Path, str]:
    """Return the folders of a package, or the file of a module, each with what it is called in a project.

    Found as an import would find it, without importing it; a namespace package has a folder for each part.
    """
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return {}
    if found is None:
        return {}
    if folders := found.submodule_search_locations:
        return {Path(folder).resolve(): package for folder in folders}
    if found.origin is None or not found.has_location:
        return {}
    file = Path(found.origin).resolve()
    return {file: file.name}


def _loaded(job: "Job") -> tuple[str, ...]:
    """Return the files of the project that were imported, opened or mapped, from its packages on."""
    folders: dict[Path, str] = {}
    for name in filter(None, os.environ[PROJECT_VARIABLE].split(",")):
        folders |= located(name)
    if getattr(job, "allow_code", ()) or getattr(job, "command", ()):
        folders[Path(getattr(job, "code_folder", "") or ".").resolve()] = ""
    modules = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    # What native code has read stays mapped: shared libraries, and weights in safetensors.
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    mapped = {line.split(maxsplit=5)[5] for line in maps if line.count("/")}
    places = {_place(file) for file in {*modules, *mapped} if file} | _opened
    return tuple(
        sorted(
            str(Path(name) / Path(place).relative_to(folder)) if place != str(folder) else name
            for folder, name in folders.items()
            for place in places
            if place == str(folder) or place.startswith(f"{folder}{os.sep}")
        )
    )


@cache
def _real_folder(folder: str) -> str:
    """Return where a folder really lies: the one that it is in is looked up once for all."""
    parent, name = os.path.split(folder)
    return os.path.realpath(folder) if name in {"", ".", ".."} else _followed(_real_folder(parent), name)


def _place(file: str) -> str:
    """Return where a file really lies: of thousands in some hundred folders, each followed once."""
    folder, name = os.path.split(file)
    if not folder.startswith(os.sep):  # where it begins changes
        return os.path.realpath(file)
    return _followed(_real_folder(folder), name)


def _followed(folder: str, name: str) -> str:
    place = os.path.join(folder, name)  # noqa: PTH118 - Path takes five times as long
    return os.path.realpath(place) if os.path.islink(place) else place  # noqa: PTH114 - the same


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    integrity.note(event)
    if event == "open" and isinstance(arguments[0], str) and not arguments[0].startswith(("/proc", "/dev")):
        # A link may be gone when it is asked; within an audit hook nothing is to be opened.
        follow = _place if arguments[0].endswith(".pyc") else os.path.realpath  # of thousands of modules
        _opened.add(follow(arguments[0]))


if Path(bench.__file__ or "").resolve().parent != Path(__file__).resolve().parents[1]:
    raise ModuleNotFoundError("No module named 'bench.gate' in this suite, which was lent one by another")
forget_editable_installs()
if os.environ.get(PROJECT_VARIABLE) is not None:
    sys.addaudithook(_note)
if os.environ.get(JUDGE_VARIABLE):
    integrity.watch()
