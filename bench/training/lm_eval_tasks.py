"""Loading lm-eval tasks by name, without indexing what the name does not need.

lm-eval parses its 14,000 YAML files to find one name (16 s); a text search finds a single task's file in
half a second. Groups and tags may lie anywhere and take lm-eval's own index. A name is never taken as a
path, since a YAML file can name code to run.
"""

import difflib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from bench.errors import UnavailableError, UsageError
from bench.scenario.types import DataSpec
from bench.training.offline_tasks import held_out_task, mmlu_task


def load_tasks(name: str, data: DataSpec) -> Any:
    """Return what lm-eval's ``TaskManager.load`` does for one task, group or tag.

    Raises ``UsageError`` for a name it does not know, ``UnavailableError`` if the task's data or a
    library it needs is not there.
    """
    from lm_eval.tasks import TaskManager

    if name == "held-out":
        return TaskManager(include_defaults=False).load([held_out_task(data)])
    if name == "mmlu-281":
        return TaskManager(include_defaults=False).load([mmlu_task()])
    path = find_task_file(name)
    try:
        if path is not None:
            return TaskManager(include_defaults=False).load([str(path)])
        return _load_from_index(name)
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"lm-eval task {name} needs the Python module {error.name}; install it or choose another task."
        ) from error
    except OSError as error:  # what the hub's client and the datasets library raise when offline
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnavailableError(
            f"The data of lm-eval task {name} cannot be fetched ({reason}); connect this machine to the hub "
            "once so that it is cached, or use held-out or mmlu-281, which need no network."
        ) from error


@cache
def find_task_file(name: str) -> Path | None:
    """Return the YAML file in lm-eval's package that defines a single task of this name, if one does."""
    line = re.compile(
        rb"""^["']?task["']?[ \t]*:[ \t]*(["']?)%s\1[ \t]*(?:\#.*)?$""" % re.escape(name.encode()),
        re.MULTILINE,
    )
    folder = Path(str(files("lm_eval"))) / "tasks"
    candidates = sorted(folder.rglob("*.yaml"), key=Path.as_posix)  # lm-eval's order: the first one counts
    return next((path for path in candidates if line.search(path.read_bytes())), None)


def _load_from_index(name: str) -> Any:
    manager = _whole_index()
    if name not in manager.all_tasks:
        near = difflib.get_close_matches(name, [*manager.all_tasks, "held-out", "mmlu-281"], n=1)
        hint = f"perhaps you meant {near[0]}" if near else "`lm_eval ls tasks` lists them"
        raise UsageError(f"lm-eval has no task named {name!r}; {hint}.")
    return manager.load([name])


@cache
def _whole_index() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()
