"""Measuring for a gate: two environments, the *sides*, run cell by cell in turn (A B B A …) in one session.

``gate_references`` and ``calibrate`` of ``gate.py`` run sessions (``session.py``) and judge them. What
decides is in ``bench.compare``, and what shows it in ``bench.report``.

Each side runs from its own sources, and this is the first of them that its processes import. The finder of
setuptools' editable installs also serves submodules that the package itself lacks, so an older revision would
be completed with the modules of a newer one (setuptools/command/editable_wheel.py, ``_FINDER_TEMPLATE``).
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench

if TYPE_CHECKING:
    from bench.records.messages import Job, Send

SOURCES_VARIABLE = "FINETUNE_BENCH_SOURCES"
"""Names of the packages that a side imports from sources, with commas between them; unset elsewhere."""

PROJECT_VARIABLE = "FINETUNE_BENCH_PROJECT"
"""Names of the packages that either side imports from sources, with commas between them."""

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

    At the end it says which files of the project under test it has loaded.
    """
    from bench.records.messages import ProjectLoaded
    from bench.workers.child import do_job

    forget_editable_installs()
    try:
        do_job(job, send)
    finally:
        if os.environ.get(PROJECT_VARIABLE) is not None:
            send(ProjectLoaded(files=_loaded(job)))


def _loaded(job: "Job") -> tuple[str, ...]:
    """Return the files of the project that were imported or opened, from its packages or its folder on."""
    modules = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    names = [name for name in os.environ[PROJECT_VARIABLE].split(",") if modules.get(name)]
    folders = {Path(str(modules[name])).resolve().parent: name for name in names}
    if getattr(job, "allow_code", ()) or getattr(job, "command", ()):
        folders[Path(getattr(job, "code_folder", "") or ".").resolve()] = ""
    paths = {Path(file).resolve() for file in [*modules.values(), *_opened] if file}
    return tuple(
        sorted(
            str(name / path.relative_to(folder))
            for path in paths
            for folder, name in folders.items()
            if path.is_relative_to(folder)
        )
    )


def _note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str) and not arguments[0].startswith(("/proc", "/dev")):
        # A link may be gone when it is asked; within an audit hook nothing is to be opened.
        _opened.add(os.path.realpath(arguments[0]))


if Path(bench.__file__ or "").resolve().parent != Path(__file__).resolve().parents[1]:
    raise ModuleNotFoundError("No module named 'bench.gate' in this suite, which was lent one by another")
forget_editable_installs()
if os.environ.get(PROJECT_VARIABLE) is not None:
    sys.addaudithook(_note_opened)
