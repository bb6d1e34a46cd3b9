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
from typing import TYPE_CHECKING

import bench

if TYPE_CHECKING:
    from bench.records.messages import Job, Send

SOURCES_VARIABLE = "FINETUNE_BENCH_SOURCES"
"""Names of the packages that a side imports from sources, with commas between them; unset elsewhere."""


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
    """Do a worker's job; one that was not forked from the server keeps to its sources from here on."""
    from bench.workers.child import do_job

    forget_editable_installs()
    do_job(job, send)


if Path(bench.__file__ or "").resolve().parent != Path(__file__).resolve().parents[1]:
    raise ModuleNotFoundError("No module named 'bench.gate' in this suite, which was lent one by another")
forget_editable_installs()
