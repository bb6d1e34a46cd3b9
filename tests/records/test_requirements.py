"""A library that cannot be imported is named with the requirement that is not met."""

import importlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.records.requirements import unimportable

ADVICE = "install what is missing, or choose versions that fit together."


def _install(folder: Path, name: str, code: str, requires: Sequence[str] = ()) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    info = folder / f"{name}-1.5.dist-info"
    info.mkdir()
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n{needs}")


def _told(library: str) -> str:
    with pytest.raises(ImportError) as caught:
        importlib.import_module(library)
    return unimportable(caught.value)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that packages are imported from."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_whoever_needs_what_is_missing_is_named(place: Path) -> None:
    """The one that imports it may rely on another to bring it; a lazy one wraps the error in its own."""
    lazy = (
        "def __getattr__(name):\n"
        "    try:\n        import missing_one\n"
        "    except ImportError as error:\n        raise ImportError(f'Could not import {name}') from error\n"
    )
    _install(place, "lazy_one", lazy, ["needy_one"])
    _install(place, "needy_one", "", ["missing_one>=2"])
    _install(place, "asking_one", "from lazy_one import anything\n")
    assert (
        "lazy_one 1.5 cannot be imported here (No module named 'missing_one'): needy-one 1.5 needs "
        f"missing_one>=2, and it is not installed; {ADVICE}"
    ) == _told("asking_one")


def test_versions_that_do_not_fit_together_may_break_no_stated_requirement(place: Path) -> None:
    """What is imported from where is told, not the path of where that lies."""
    _install(place, "older_one", "from newer_one import Dropped\n", ["newer_one"])
    _install(place, "newer_one", "")
    assert (
        "older_one 1.5 cannot be imported here (cannot import name 'Dropped' from 'newer_one'): no "
        f"requirement that it states is unmet; {ADVICE}"
    ) == _told("older_one")


def test_a_requirement_of_its_own_is_named_where_nothing_is_missing(place: Path) -> None:
    """The version that is there does not do."""
    _install(place, "strict_one", "from low_one import Later\n", ["low_one>=2"])
    _install(place, "low_one", "")
    assert "): strict-one 1.5 needs low_one>=2, and low-one 1.5 is there; install" in _told("strict_one")
