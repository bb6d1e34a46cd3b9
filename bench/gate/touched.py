"""Whether a session touched what it gates: what the sides differ in, and what of that their workers loaded.

And whether bench, which measured, was left alone by what it measured. Python says what it opens; libraries in
other languages and processes that code under test starts do not, so the kernel is asked too (inotify(7)).
"""

import ctypes
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from bench.errors import InfrastructureError, counted
from bench.gate.installed import files
from bench.gate.process import SideProcess
from bench.gate.protocol import Ready
from bench.gate.sides import Side
from bench.records.readings import Caveat
from bench.records.sessions import SIDES, SideName

_NAMED = 3
_NONE: tuple[None, None] = (None, None)
Contents = dict[str, tuple[str, Path | None]]
"""Digests by name, and where each file lies; a package as installed is known by its digest alone."""


class Touched:
    """Is told of the sides as they open, and of each run.

    ``changed`` are files of packages under test, and names of installed packages, that are not alike on both
    sides, less the ``ignored``; ``loaded`` those of any kind that workers loaded, None where one
    did not tell.
    """

    def __init__(self) -> None:
        """Know of nothing yet."""
        self.changed: frozenset[str] = frozenset()
        self.ignored: frozenset[str] = frozenset()
        self._opened = Opened({})
        self.loaded: frozenset[str] | None = frozenset()
        self._altered: dict[SideName, set[str]] = {}

    def opened(
        self, sides: Sequence[tuple[SideProcess, Ready]], *, earlier_runs: bool, ignore: Sequence[str] = ()
    ) -> None:
        """Compare the sides, but for what fits a pattern to ``ignore``.

        What workers loaded before a session was resumed is not known any more.
        """
        if len(sides) < len(SIDES):
            return  # the other is a stored plan
        base, candidate = (_contents(process.side, ready, sides) for process, ready in sides)
        names = base.keys() | candidate.keys()
        differing = {name for name in names if base.get(name, _NONE)[0] != candidate.get(name, _NONE)[0]}
        self.ignored = frozenset(
            name for name in differing if any(fnmatchcase(name, pattern) for pattern in ignore)
        )
        self.changed = frozenset(differing) - self.ignored
        places = [(side[name][1], name) for side in (base, candidate) for name in differing & side.keys()]
        self._opened.close()
        self._opened = Opened({path: name for path, name in places if path is not None})
        if earlier_runs:
            self.loaded = None

    def ran(
        self,
        side: SideName,
        project: Sequence[str] | None,
        imported: Sequence[str] = (),
        altered: Sequence[str] = (),
    ) -> None:
        """Take what the worker of a run has told."""
        told = None if project is None else {*project, *imported}
        self.loaded = None if self.loaded is None or told is None else self.loaded | told
        if altered:
            self._altered.setdefault(side, set()).update(altered)

    def caveats(self) -> Iterator[Caveat]:
        """Yield why nothing that was measured counts, if so."""
        for side, names in self._altered.items():
            yield Caveat(
                code="judge-altered",
                message=f"What the {side} reports is no measurement: code in its process replaced parts "
                f"of the bench that measured it ({_listed(sorted(names))}); find what does so, in the code "
                "under test or in its environment.",
            )
        opened = self._opened.names()
        self._opened.close()
        if self.ignored and not self.changed:
            yield Caveat(
                code="nothing-else-changed",
                message=f"Base and candidate differ in nothing but {_listed(sorted(self.ignored))}, which "
                "gate.ignore has left out of the question whether anything was tested.",
            )
        if self.changed and self.loaded is not None and not self.changed & (self.loaded | opened):
            yield Caveat(
                code="nothing-tested",
                message=f"Nothing was tested: base and candidate differ in {_listed(sorted(self.changed))}, "
                "which no worker loaded; gate a scenario whose loop uses what was changed, or your own "
                "script with --command. Where that is as it should be, name those files in gate.ignore.",
            )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {counted(more, 'other')}" if more > 0 else "")


def imports(side: Side, ready: Ready) -> Iterator[Caveat]:
    """Yield what a side imports as installed of the other side's sources.

    Raises ``InfrastructureError`` where what is under test, or bench, would come from elsewhere.
    """
    expected = [(name, side.first) for name in side.under_test] + [("bench", side.judge)]
    for package, root in expected:
        location = ready.locations.get(package)
        if root and (location is None or not Path(location).resolve().is_relative_to(root.resolve())):
            whose = "the bench that was started" if package == "bench" else side.facts.given
            raise InfrastructureError(
                f"the {side.name} would import {package} from {location or 'nowhere'} instead of "
                f"{whose}: something in the environment comes before PYTHONPATH; install that "
                "version into a virtual environment and give that"
            )
    if side.first is not None:
        return
    located = sorted((name, at) for name, at in ready.locations.items() if name != "bench")
    if installed := [name for name, location in located if location and "site-packages" in location]:
        message = (
            f"The {side.name} imports {' and '.join(installed)} as installed, not from the repository; give "
            "a folder (--candidate .) to have it as it lies there."
        )
        yield Caveat(code="as-installed", message=message)


def _contents(side: Side, ready: Ready, sides: Sequence[tuple[SideProcess, Ready]]) -> Contents:
    """Return what can differ: installed names, files of packages under test, and of the loop's folder."""
    under_test = {name for process, _ in sides for name in process.side.under_test}
    found: Contents = {
        name: (digest, None) for name, digest in ready.installed.items() if name not in {"bench", *under_test}
    }
    for name in under_test:
        if at := ready.locations.get(name):
            found |= _files_of(name, Path(at))
    if any(process.side.code for process, _ in sides):
        folder = Path(side.code or ".")
        found |= {path: (digest, folder / path) for path, digest in files(folder, "*.py")}
    return found


def _files_of(name: str, at: Path) -> Contents:
    folder = at.parent if at.name.startswith("__init__.") else at
    if folder.is_file():
        return {path: (digest, folder) for path, digest in files(folder)}
    return {f"{name}/{path}": (digest, folder / path) for path, digest in files(folder)}


_IN_OPEN = 0x20
_MOST = 4096  # files; of so many changes Python code alone says enough
_EVENT = struct.Struct("iIII")
_READ_BYTES = 1 << 16


class Opened:
    """Watches which of some files any process opens from here on; where the kernel cannot, none is seen."""

    def __init__(self, files: Mapping[Path, str]) -> None:
        """Take the files, and what each is called.

        Of modules the compiled ones, where they are there: bench itself reads sources, for a record's digest.
        """
        self._names: dict[int, str] = {}
        self._seen: set[str] = set()
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for path, name in [*files.items()][:_MOST] if self._descriptor >= 0 else ():
            compiled = (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc")
            for each in compiled if path.suffix == ".py" else (path,):
                watch = libc.inotify_add_watch(self._descriptor, os.fsencode(each), _IN_OPEN)
                if watch >= 0:
                    self._names[watch] = name

    def names(self) -> frozenset[str]:
        """Return what was opened so far."""
        while self._descriptor >= 0:
            try:
                content = os.read(self._descriptor, _READ_BYTES)
            except BlockingIOError:
                break
            place = 0
            while place < len(content):
                watch, _, _, length = _EVENT.unpack_from(content, place)
                place += _EVENT.size + length
                self._seen.update({self._names[watch]} if watch in self._names else ())
        return frozenset(self._seen)

    def close(self) -> None:
        """Watch no longer."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
