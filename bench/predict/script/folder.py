"""Where a predicted script works: links to the user's files, copies once it writes."""

import contextlib
import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LEVELS = 3
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_IN_FOLDER = frozenset({"os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink"})
"""Events of ``sys.audit`` that change the folder in which a path lies, and leave what a link points to."""
_WHOLE = frozenset({"os.truncate", "os.chmod", "os.utime", "os.chdir", "shutil.rmtree"})


@contextlib.contextmanager
def working_in_links(folder: Path) -> Iterator[None]:
    """Run a block in a folder of links: relative paths are read, two folders up too.

    Whatever Python changes at a relative path, or below ``folder``, it changes there and not in the original.
    """
    here, folder = Path.cwd(), folder.resolve()
    place = folder.joinpath(*here.parts[1:])
    place.mkdir(parents=True)
    levels = zip([here, *here.parents], [place, *place.parents], strict=False)
    for original, linked in itertools.islice(levels, _LEVELS):
        _link(original, linked)
    owner = _Owner(folder)
    sys.addaudithook(owner)  # which cannot be removed
    os.chdir(place)
    try:
        yield
    finally:
        owner.at_work = True
        os.chdir(here)


def _link(original: Path, place: Path) -> None:
    with contextlib.suppress(PermissionError):  # a folder above the script that it cannot list either
        for entry in original.iterdir():
            with contextlib.suppress(FileExistsError):  # the way down to the working folder
                (place / entry.name).symlink_to(entry)


class _Owner:
    """Hears what is about to be written, and puts copies in the place of the links on the way to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.at_work = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.at_work or not (event == "open" or event in _IN_FOLDER or event in _WHOLE):
            return
        if event == "open" and not arguments[2] & _WRITES:
            return
        self.at_work = True
        try:
            for given in arguments[:2] if event in _IN_FOLDER else arguments[:1]:
                if isinstance(given, str | bytes | os.PathLike):
                    path = Path(os.path.abspath(os.fsdecode(given)))  # noqa: PTH100 - links stay
                    self._own(path.parent if event in _IN_FOLDER else path)
        finally:
            self.at_work = False

    def _own(self, path: Path) -> None:
        """Put folders of links for the linked folders on the way, and in the end a copy for a linked file."""
        if not path.is_relative_to(self._folder):
            return
        place = self._folder
        for name in path.relative_to(self._folder).parts:
            place /= name
            original = place.resolve() if place.is_symlink() else None
            if original is not None and original.is_dir():
                place.unlink()
                place.mkdir()
                _link(original, place)
            elif original is not None and original.is_file():
                place.unlink()
                shutil.copy2(original, place)
