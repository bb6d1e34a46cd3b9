"""What an environment has installed, as a digest for each name that can be imported.

From what installers wrote down, which is quick for gigabytes; what was edited afterwards, or is imported from
elsewhere than it was installed to (editable, or by PYTHONPATH), is read.
"""

import contextlib
import csv
import hashlib
import importlib.util
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from bench.io import MAX_BYTES, open_data

NOT_SOURCE = frozenset({"__pycache__", "site-packages"})
_SETTLING_NS = 5 * 10**9  # an installer writes RECORD last


def installed() -> dict[str, str]:
    """Return a digest of what each top-level name of a distribution would import."""
    recorded: dict[str, list[tuple[Path, str]]] = {}
    seen = set()
    for distribution in metadata.distributions():
        if (named := distribution.metadata["Name"]) not in seen:  # the first on the path is the one imported
            seen.add(named)
            for name, line in _recorded(distribution):
                recorded.setdefault(name, []).append((Path(str(distribution.locate_file(""))), line))
    digests = {}
    for name in metadata.packages_distributions():
        at = location(name)
        if at is not None and not name.startswith("__editable__"):
            place = Path(at).parent if Path(at).name.startswith("__init__.") else Path(at)
            own = [line for root, line in recorded.get(name, ()) if place.parent == root]
            lines = own or [f"{path} {digest}" for path, digest in files(place)]
            digests[name] = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
    return digests


def location(name: str) -> str | None:
    """Return where a package or module would be imported from, without importing it."""
    with contextlib.suppress(ImportError, ValueError):
        if found := importlib.util.find_spec(name):
            return found.origin or next(iter(found.submodule_search_locations or ()), None)
    return None


def _recorded(distribution: metadata.Distribution) -> Iterator[tuple[str, str]]:
    """Yield the top-level name and a digest of each file that an installer has written."""
    root = str(distribution.locate_file(""))
    rows = [*csv.reader((distribution.read_text("RECORD") or "").splitlines())]
    places = [f"{root}/{path}" for path, *_ in rows if path.endswith(".dist-info/RECORD")]
    written_ns = max(map(_changed_ns, places), default=0) + _SETTLING_NS
    for path, recorded, *_ in rows:
        if recorded:
            edited = _changed_ns(f"{root}/{path}") > written_ns
            digest = digest_of(Path(root, path)) if edited else recorded
            yield path.partition("/")[0].partition(".")[0], f"{path} {digest}"


def _changed_ns(path: str) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_mtime_ns  # noqa: PTH116 - tens of thousands
    return 0


def files(place: Path, pattern: str = "*") -> Iterator[tuple[str, str]]:
    """Yield each file's path and digest; what is hidden or installed is left out."""
    for path in [place] if place.is_file() else sorted(place.rglob(pattern)):
        inside = Path(path.name) if path == place else path.relative_to(place)
        hidden = any(part.startswith(".") or part in NOT_SOURCE for part in inside.parts)
        if not hidden and not path.is_symlink() and path.is_file():
            yield str(inside), digest_of(path)


def digest_of(path: Path) -> str:
    """Return a digest of a file; of a large one, by its size and both ends."""
    try:
        with open_data(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= MAX_BYTES:
                return hashlib.file_digest(file, "sha256").hexdigest()
            digest = hashlib.sha256(f"{size} ".encode() + file.read(MAX_BYTES // 2))
            file.seek(size - MAX_BYTES // 2)
            digest.update(file.read())
            return digest.hexdigest()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
