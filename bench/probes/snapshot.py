"""The history of torch's allocator for its viewer at https://pytorch.org/memory_viz; only on CUDA.

The viewer takes a pickle, which is written here and never read by anything of ours. Recording costs some
microseconds an allocation, so it ends before the measured steps.
"""

import contextlib
import pickle
from pathlib import Path
from typing import Any

import torch

from bench.io import whole_file
from bench.probes.phases import Send
from bench.records.cuda import AllocatorSnapshot, SnapshotMoment
from bench.records.messages import ReadingMade
from bench.records.records import Caveat

MAX_ENTRIES = 200_000  # births and deaths: several steps of a 7B model; older ones are dropped


class SnapshotRecorder:
    """Records allocations from ``start`` to the end of the warm-up, and writes them to one file."""

    def __init__(self, path: Path, send: Send) -> None:
        """Write to ``path``, in a folder that exists, and send the file's name through ``send``."""
        self._path = path
        self._send = send
        self._kept: Any = None
        self._written = False

    def start(self) -> None:
        """Begin to record, with the Python stack of each allocation."""
        torch.cuda.init()  # before it there is no allocator that could record
        torch.cuda.memory._record_memory_history(stacks="python", max_entries=MAX_ENTRIES)  # noqa: SLF001 - torch's documented way

    def keep(self) -> None:
        """Take what is held at this moment, which is that of an out-of-memory error; write nothing yet."""
        self._kept = torch.cuda.memory._snapshot()  # noqa: SLF001 - the same

    def after_warmup(self) -> None:
        """Write what was recorded and stop recording."""
        self._write(torch.cuda.memory._snapshot(), "after the warm-up")  # noqa: SLF001 - the same
        torch.cuda.memory._record_memory_history(None)  # noqa: SLF001 - the same

    def failed(self) -> None:
        """Write what was kept at an out-of-memory error, else what is held now unless a file is there."""
        if self._kept is not None:
            self._write(self._kept, "out of memory")
        elif not self._written and torch.cuda.is_initialized():
            with contextlib.suppress(RuntimeError):  # a device that failed may answer nothing more
                self._write(torch.cuda.memory._snapshot(), "as the cell failed")  # noqa: SLF001 - the same

    def _write(self, snapshot: object, moment: SnapshotMoment) -> None:
        try:
            with whole_file(self._path) as file:
                pickle.dump(snapshot, file)
                size_bytes = file.tell()
        except OSError as error:
            self._send(ReadingMade(reading=_not_written(error)))
            return
        self._written = True
        reading = AllocatorSnapshot(file_name=self._path.name, moment=moment, size_bytes=size_bytes)
        self._send(ReadingMade(reading=reading))


def nothing_to_snapshot() -> Caveat:
    """Return what is said where there is no device."""
    message = "There is nothing to snapshot on a CPU: torch records its allocator's history on CUDA only."
    return Caveat(code="no-snapshot", message=message)


def _not_written(error: OSError) -> Caveat:
    message = (
        f"The allocator's history could not be written ({error.strerror}); free some space, or choose "
        "another folder with --results."
    )
    return Caveat(code="snapshot-not-written", message=message)
