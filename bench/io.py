"""The one place that opens files: written whole or not at all, read within limits; and where the cache is.

Files and folders may come from strangers. A write goes to a new file of an unpredictable name, so that no
link planted there is written through, and is then renamed; a link in the final place is replaced, never
followed. Only plain files are read, up to a size, a depth and a time. Nothing else in bench opens a file
(``tests/project/test_files.py``).
"""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import re
import secrets
import shutil
import stat
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from io import BufferedReader
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from bench.errors import InfrastructureError, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

_Model = TypeVar("_Model", bound="BaseModel")

MAX_BYTES = 64 * 1024**2
MOST_DATA_BYTES = 64 * 1024**3
"""Of a file of rows, which is read through more than once; a hole in a file can pretend to any size."""
READ_TIMEOUT_S = 120.0
NOT_PLAIN = "is a link or not a plain file; only plain files are read"
_PIECE_BYTES = 4 * 1024**2
_COMPLETE = "complete.json"  # written last: a folder without it is a broken-off attempt


def cache_folder() -> Path:
    """Return the folder for what can be made or fetched again; it may not exist yet.

    It is $FINETUNE_BENCH_CACHE, else ``finetune-bench`` under $XDG_CACHE_HOME.
    """
    if given := os.environ.get("FINETUNE_BENCH_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-bench"


@contextlib.contextmanager
def whole_file(path: Path, *, keep_old: bool = False, synced: bool = True) -> Iterator[IO[bytes]]:
    """Open a new file that takes its place at ``path``, synced to disk, once the block ends without an error.

    After a crash or, if ``synced``, a power cut it is there whole or not at all. With ``keep_old`` what was
    there before becomes ``NAME.old``. Raises ``OSError``, also where a device or a pipe lies at ``path``.
    """
    if not keep_old and path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EEXIST, "a device or a pipe is there")
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    # O_EXCL refuses whatever lies there already, a dangling link included.
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
    )
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - Path.open cannot refuse to follow a link
            yield file
            file.flush()
            if synced:
                os.fsync(file.fileno())
        if keep_old:
            _put_aside(path)
        temporary.replace(path)
        if synced:
            _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a new folder that takes its place at ``path`` once the block ends without an error.

    What was there before becomes ``NAME.old``. Raises ``OSError``.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        _put_aside(path)
        temporary.rename(path)
        _sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_left_overs(folder: Path) -> None:
    """Remove what writing left behind in a folder, of processes that were killed. Raises ``OSError``."""
    for left_over in folder.glob(".*.tmp"):
        if left_over.is_dir() and not left_over.is_symlink():
            shutil.rmtree(left_over)
        else:
            left_over.unlink(missing_ok=True)


def make_folder(folder: Path, under: Path = Path()) -> None:
    """Make a folder with those above it, of which none below ``under`` may be a link. Raises ``OSError``.

    A link that was planted there leads anywhere. Of an absolute path that is not below it, the whole is the
    user's own choice.
    """
    place = under
    for part in folder.relative_to(under).parts if folder.is_relative_to(under) else ():
        place /= part
        if place.is_symlink():
            raise OSError(errno.ELOOP, f"{place} is a link; name the folder that it leads to")
    folder.mkdir(parents=True, exist_ok=True)


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return ``folder``, filled by ``make`` unless a complete one is there; safe against a second process."""
    from filelock import FileLock

    make_folder(folder.parent)
    with FileLock(f"{folder}.lock"):
        if not (folder / _COMPLETE).exists():
            partial = folder.with_name(folder.name + ".partial")
            for leftover in (partial, folder):
                shutil.rmtree(leftover, ignore_errors=True)
            partial.mkdir()
            try:
                make(partial)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            write_text(partial / _COMPLETE, '{"format": 1}\n')
            partial.replace(folder)
    return folder


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[int]:
    """Hold a lock on a folder, or a file that is made for it; give the open descriptor.

    The kernel frees it however the process ends. Raises ``InfrastructureError(busy)`` where another process
    holds it, ``OSError`` where it cannot be opened.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY if path.is_dir() else os.O_RDWR | os.O_CREAT | os.O_NONBLOCK
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InfrastructureError(busy) from None
        yield descriptor
    finally:
        os.close(descriptor)


def _put_aside(path: Path) -> None:
    """Rename what lies there, if anything does, to ``NAME.old``, or the next number of it that is free."""
    if os.path.lexists(path):
        asides = (path.with_name(f"{path.name}.old{number or ''}") for number in itertools.count())
        path.rename(next(aside for aside in asides if not os.path.lexists(aside)))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a file whole. Raises ``InfrastructureError`` where it cannot be written."""
    # A name of a file that is no UTF-8 holds halves of characters.
    write_bytes(path, text.encode(errors="replace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole. Raises ``InfrastructureError`` where it cannot be written."""
    with writing(str(path)), whole_file(path) as file:
        file.write(content)


def append_text(path: Path, text: str) -> None:
    """Add to a plain file that another program reads. Raises ``OSError``."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        _require_plain(descriptor, MAX_BYTES)
        os.write(descriptor, text.encode(errors="replace"))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(what: str, elsewhere: str = "choose another place") -> Iterator[None]:
    """Raise ``InfrastructureError`` for an ``OSError``: why ``what`` cannot be written, and what to do."""
    try:
        yield
    except OSError as error:
        advice = elsewhere
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            advice = "free some space"
        elif error.errno == errno.EFBIG:
            advice = "raise the limit on the size of files (ulimit -f)"
        raise InfrastructureError(f"cannot write {what} ({error.strerror}); {advice}") from error


def open_data(path: Path, most_bytes: int = MOST_DATA_BYTES, *, follow: bool = True) -> BufferedReader:
    """Open a plain file, links followed; raise ``OSError`` for all else: a pipe would keep us waiting."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except ValueError:
        raise OSError(errno.EINVAL, "a name with a NUL in it") from None
    try:
        _require_plain(descriptor, most_bytes)
        return open(descriptor, "rb")  # noqa: PTH123 - Path.open takes no descriptor
    except BaseException:
        os.close(descriptor)
        raise


@cache
def _kernel_devices() -> frozenset[int]:
    """Return the numbers of /proc and /sys, whose files look plain, and may block or never end."""
    return frozenset(os.stat(path).st_dev for path in ("/proc", "/sys") if os.path.isdir(path))  # noqa: PTH112, PTH116 - names, not paths of ours


def _require_plain(descriptor: int, most_bytes: int) -> None:
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_dev in _kernel_devices():
        raise OSError(errno.EINVAL, "a folder, a pipe or a device, not a plain file")
    if facts.st_size > most_bytes:
        raise OSError(errno.EFBIG, f"larger than {most_bytes:,} bytes")


def read_data(path: Path, most_bytes: int = MAX_BYTES, *, follow: bool = True) -> bytes:
    """Return what a plain file of the user's holds. Raises ``OSError``, also where that takes too long."""
    deadline_s = time.monotonic() + READ_TIMEOUT_S
    with open_data(path, most_bytes, follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
        pieces, read_bytes = [], 0
        while piece := os.read(file.fileno(), min(size + 1, _PIECE_BYTES)):
            pieces.append(piece)
            read_bytes += len(piece)
            if read_bytes > most_bytes:
                raise OSError(errno.EFBIG, f"larger than {most_bytes:,} bytes")
            if time.monotonic() > deadline_s:
                raise OSError(errno.ETIMEDOUT, f"not read within {READ_TIMEOUT_S:g} s")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_plain_file(path: Path, most_bytes: int = MAX_BYTES) -> bytes | str:
    """Return what a plain file holds, links not followed, or in one clause why it is not read."""
    try:
        return read_data(path, most_bytes, follow=False)
    except OSError as error:
        if error.errno == errno.EFBIG:
            return too_large(most_bytes)
        strange = error.errno in {errno.ELOOP, errno.ENXIO, errno.EINVAL}
        return NOT_PLAIN if strange else f"cannot be read ({error.strerror})"


def parse_json(text: str | bytes) -> Any:
    """Return what JSON in text holds. Raises ``ValueError``, also for too many levels, or a name twice."""
    try:
        return json.loads(text, object_pairs_hook=single_names)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def single_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON. Raises ``ValueError``."""
    if len(found := dict(pairs)) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return found


_APART = re.compile(rb'"\s+:')
"""A name and its colon."""


def require_single_names(content: bytes) -> None:
    """Raise ``ValueError`` where an object of JSON has a name twice: decoders silently take the last.

    Names are counted before and after decoding, which is quick; parsed is what then is in doubt.
    """
    from msgspec import json as quick

    with contextlib.suppress(ValueError, RecursionError):
        held = quick.encode(quick.decode(content))
        plain = b"\\" not in content and not _APART.search(content)
        if plain and content.count(b'":') == held.count(b'":'):
            return
    with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):  # which decoders say better
        parse_json(content)


def own_text(package: str, *name: str) -> str:
    """Return a text that is a part of this program, or of a library it uses."""
    return files(package).joinpath(*name).read_text(encoding="utf-8")


def own_toml(package: str, *name: str) -> dict[str, Any]:
    """Return tables that are a part of this program."""
    return tomllib.loads(own_text(package, *name))


def kernel_text(path: Path) -> str | None:
    """Return what the kernel says in a file of /proc or /sys; None where it says nothing."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def too_large(most_bytes: int) -> str:
    """Return the clause about a file that is larger than any of ours."""
    return f"is larger than {most_bytes:,} bytes, which nothing that bench writes is"


def write_json(path: Path, content: "BaseModel", *, exclude_defaults: bool = False) -> None:
    """Write a document as JSON, folders included. Raises ``InfrastructureError`` if it cannot."""
    with writing(str(path)):
        make_folder(path.parent)
    write_text(path, content.model_dump_json(indent=1, exclude_defaults=exclude_defaults) + "\n")


def read_json(path: Path, kind: type[_Model], name: str, advice: str) -> _Model:
    """Read one document. Raises ``UsageError`` where it is no ``name``, ending with the ``advice``."""
    from pydantic import ValidationError

    content = read_plain_file(path)
    if isinstance(content, str):
        raise UsageError(f"{path} {content}; {advice}")
    try:
        require_single_names(content)
        return kind.model_validate_json(content)
    except ValidationError as error:
        mistake = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, mistake["loc"])) or "the file"
        raise UsageError(f"{path} is not {name} ({where}: {mistake['msg']}); {advice}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not {name} ({error}); {advice}") from None
