"""Every error that ends a command, each with its exit code.

Exit codes: 0 done, 2 usage, 4 infrastructure (a cell failed, or nothing could be measured), 130
interrupted; of ``bench gate`` and ``bench compare`` also 1 regression, 3 inconclusive; 70 a defect of ours.
A message is one or more full sentences and ends with what to do next.
"""

import sys
from collections.abc import Sequence
from pathlib import PurePath
from traceback import walk_tb
from typing import ClassVar, Literal, NamedTuple

UNEXPECTED_EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h


class BenchError(Exception):
    """A failure that a user can act on; shown without a traceback unless ``--debug`` is given."""

    exit_code: ClassVar[int] = 4


class UsageError(BenchError):
    """The command line, a scenario or a results folder is wrong; nothing was run."""

    exit_code = 2


class ScenarioError(UsageError):
    """A scenario file has mistakes; ``problems`` holds one line for each of them."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class InfrastructureError(BenchError):
    """Something around the measurement failed: a disk, a worker that would not start, a download."""

    exit_code = 4


class UnavailableError(BenchError):
    """This machine cannot do what the cell asks; recorded as the outcome *unavailable*."""

    exit_code = 4


class UntraceableError(BenchError):
    """A cell cannot be predicted; the message names the operator, method or setting to blame."""

    exit_code = 4


class InterruptedByUserError(BenchError):
    """Ctrl-C or SIGTERM; everything finished before it is on disk."""

    exit_code = 130


def counted(number: int, noun: str) -> str:
    """Return a number with its noun for a message: 1 run, 2 runs."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def percent(share: float, digits: int = 1, sign: Literal["", "+"] = "") -> str:
    """Return a share for a message: 5.0 %, with ``sign`` + that of a change."""
    return f"{share * 100:{sign}.{digits}f} %"


def listed(texts: Sequence[str], most: int) -> str:
    """Return the first texts as a list for a message, and how many more there are."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return f"{', '.join(texts[:most])}{more}"


def not_installed(who: str, package: str, instead: str = "") -> str:
    """Return the sentence on a package that something needs; ``instead`` is what can be set in its place."""
    name = '"finetune-bench[trl]"' if package == "trl" else package
    advice = f"pip install {name}{instead and f', or set {instead}'}"
    return f"{who} needs the package {package}, which is not installed; {advice}."


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, to be quoted in a sentence; its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")


def one_line(error: BaseException) -> str:
    """Return a library's whole message as one line, to be quoted inside a sentence."""
    return " ".join(str(error).split()).rstrip(".")


_OURS = "bench"
_CARRIES = frozenset({*sys.stdlib_module_names, "torch"})
"""Packages that run others' code: what fails in them is told of whoever called them."""


class Fault(NamedTuple):
    """The library whose code failed, and its line."""

    library: str
    place: str


def library_at_fault(error: Exception) -> Fault | None:
    """Return who failed, wherever it was imported from; None where that is this package, or a script."""
    lines = [
        (str(frame.f_globals.get("__name__")).partition(".")[0], frame.f_code.co_filename, line)
        for frame, line in walk_tb(error.__traceback__)
    ]
    name, file, line = next((one for one in reversed(lines) if one[0] not in _CARRIES), (_OURS, "", 0))
    if name in {_OURS, "__main__"}:
        return None
    return Fault(name, f"{'/'.join(PurePath(file).parts[-2:])}, line {line}")
