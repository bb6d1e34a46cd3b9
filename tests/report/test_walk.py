"""A record walks to its row in the Markdown page without coming back: load, compare, show."""

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from types import FrameType

import pytest

from bench.commands.report import report

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "smollm2_cpu"
# What any folder may use: how errors are counted in words, and how a file is written.
SHARED = {"errors", "io"}


def folder_of(frame: FrameType | None) -> str:
    """Return the folder (or file) directly under bench/ that a frame's code stands in, or nothing."""
    package, _, rest = str(frame.f_globals.get("__name__", "") if frame else "").partition(".")
    return rest.partition(".")[0] if package == "bench" else ""


def caller_of(frame: FrameType) -> str:
    """Return the folder of the nearest frame below that is the suite's own."""
    below = frame.f_back
    while below and not folder_of(below):
        below = below.f_back
    return folder_of(below)


@pytest.fixture(scope="module")
def crossings() -> list[tuple[str, str, str]]:
    """Return each call from one folder to another of ``bench report FOLDER``: from, to, and the function.

    What belongs to an object that was handed on (a first parameter ``self``, or a view that its class is made
    of) is marked with a dot before it.
    """
    found: list[tuple[str, str, str]] = []

    def trace(frame: FrameType, event: str, _argument: object) -> None:
        folder = folder_of(frame) if event == "call" else ""
        if folder and frame.f_code.co_name != "<module>" and (caller := caller_of(frame)) != folder:
            name, view = frame.f_code.co_qualname, ".<lambda>"
            in_class = name.endswith(view) and "<locals>" not in name
            owned = in_class or frame.f_code.co_varnames[:1] in {("self",), ("measured",)}
            found.append((caller, folder, "." * owned + name))

    report([REFERENCE])  # imports everything
    sys.setprofile(trace)
    try:
        report([REFERENCE])
    finally:
        sys.setprofile(None)
    return found


def test_the_command_enters_each_folder_once(crossings: list[tuple[str, str, str]]) -> None:
    """Records are loaded, then compared, then shown; nothing else is called by the command."""
    entered = [to for caller, to, _ in crossings if caller == "commands"]
    assert ["records", "compare", "report"] == [folder for folder, _ in groupby(entered)]


def test_no_folder_calls_back(crossings: list[tuple[str, str, str]]) -> None:
    """Each calls only those that stand before it; what shows reads attributes of what it was handed."""
    order = ["scenario", "records", "stats", "compare", "report", "commands"]
    assert [] == [one for one in calls(crossings) if one[0] and order.index(one[1]) > order.index(one[0])]
    assert [] == [one for one in calls(crossings) if one[0] == "report" and not one[2].startswith(".")]


def calls(crossings: list[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
    """Yield each crossing once, without those to what all share."""
    yield from dict.fromkeys(one for one in crossings if one[1] not in SHARED)
