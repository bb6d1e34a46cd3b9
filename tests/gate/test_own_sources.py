"""A package's own sources are not completed with modules of its editable install."""

import importlib
import sys
import types
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

import pytest

from bench.gate import SOURCES_VARIABLE, forget_editable_installs
from gate_projects import write_project


def test_a_module_that_only_the_editable_install_has_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finder as setuptools writes it; what it knows of other packages it keeps."""
    old, new = tmp_path / "old" / "src", tmp_path / "new" / "src" / "gated_package"
    write_project(tmp_path / "old", "1.0")
    write_project(tmp_path / "new", "2.0")
    (new / "added.py").touch()
    module = types.ModuleType("__editable___gated_finder")
    module.MAPPING = {"gated_package": str(new), "another": "/elsewhere"}  # type: ignore[attr-defined] # as it does

    class Finder:
        """What such an installation puts last."""

        __module__ = module.__name__

        @classmethod
        def find_spec(cls, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
            """Find submodules of a mapped package in its folder."""
            folder = module.MAPPING.get(name.partition(".")[0])
            return PathFinder.find_spec(name, [folder]) if folder and "." in name else None

    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    monkeypatch.syspath_prepend(str(old))
    importlib.import_module("gated_package.added")
    for name in ("gated_package.added", "gated_package"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv(SOURCES_VARIABLE, "gated_package")
    forget_editable_installs()
    with pytest.raises(ModuleNotFoundError, match=r"gated_package\.added"):
        importlib.import_module("gated_package.added")
    monkeypatch.delitem(sys.modules, "gated_package")
    assert {"another": "/elsewhere"} == module.MAPPING
