"""What a cell reads besides its scenario: local data and weights, which can change under the same name."""

import hashlib
from pathlib import Path

from bench.scenario.types import Cell, JsonlData

_READ_BYTES = 1 << 20


def inputs_digest(cell: Cell) -> str | None:
    """Return a SHA-256 over the cell's local files; None when it reads none.

    A data file counts by its content, weights by name, size and time of change: they are too large to
    read twice. A file that is missing counts as such; the worker says what is wrong with it.
    """
    digest = hashlib.sha256()
    if isinstance(cell.data, JsonlData):
        _add_content(digest, Path(cell.data.path))
    if cell.model.path is not None:
        for file in sorted(Path(cell.model.path).glob("*.*")):
            status = file.stat()
            digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    elif not isinstance(cell.data, JsonlData):
        return None
    return digest.hexdigest()


def _add_content(digest: "hashlib._Hash", path: Path) -> None:
    try:
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except OSError:
        digest.update(b"missing")
