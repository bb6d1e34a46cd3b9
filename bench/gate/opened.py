"""Which of some files any process opens, as the kernel sees it (inotify(7)).

Python says what it opens; libraries in other languages and processes that code under test starts do not.
"""

import ctypes
import os
import struct
from collections.abc import Mapping
from pathlib import Path

_IN_OPEN = 0x20
_MOST = 4096  # files; of so many changes Python code alone says enough
_EVENT = struct.Struct("iIII")
_READ_BYTES = 1 << 16


class Opened:
    """Watches files from here on; where the kernel cannot, none is ever seen."""

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
