"""Files: written whole or not at all, read without following links, and where the cache is.

Folders may come from strangers. A write goes to a new file of an unpredictable name, so that no link planted
there is written through, and is then renamed; a link in the final place is replaced, never followed.
"""

import contextlib
import errno
import itertools
import os
import secrets
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from bench.errors import InfrastructureError, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

_Model = TypeVar("_Model", bound="BaseModel")

MAX_BYTES = 64 * 1024**2
NOT_PLAIN = "is a link or not a plain file; only plain files are read"


def cache_folder() -> Path:
    """Return the folder for what can be made or fetched again; it may not exist yet.

    It is $FINETUNE_BENCH_CACHE, else ``finetune-bench`` under $XDG_CACHE_HOME.
    """
    if given := os.environ.get("FINETUNE_BENCH_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-bench"


@contextlib.contextmanager
def whole_file(path: Path, *, keep_old: bool = False) -> Iterator[IO[bytes]]:
    """Open a new file that takes its place at ``path``, synced to disk, once the block ends without an error.

    After a crash or a power cut it is there whole or not at all. With ``keep_old`` what was there before
    becomes ``NAME.old``. Raises ``OSError``, also where a device or a pipe lies at ``path``.
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
            os.fsync(file.fileno())
        if keep_old and os.path.lexists(path):
            asides = (path.with_name(f"{path.name}.old{number or ''}") for number in itertools.count())
            path.rename(next(aside for aside in asides if not os.path.lexists(aside)))
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a file whole. Raises ``InfrastructureError`` where it cannot be written."""
    try:
        with whole_file(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise cannot_write(str(path), error, "choose another place") from error


def cannot_write(what: str, error: OSError, elsewhere: str) -> InfrastructureError:
    """Return the error that says why ``what`` cannot be written, and what to do."""
    advice = elsewhere
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        advice = "free some space"
    elif error.errno == errno.EFBIG:
        advice = "raise the limit on the size of files (ulimit -f)"
    return InfrastructureError(f"cannot write {what} ({error.strerror}); {advice}")


def open_data(path: Path) -> BufferedReader:
    """Open a plain file, links followed; raise ``OSError`` for all else: a pipe would keep us waiting."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "a folder, a pipe or a device, not a plain file")
    return open(descriptor, "rb")  # noqa: PTH123 - Path.open takes no descriptor


def read_plain_file(path: Path, most_bytes: int = MAX_BYTES) -> bytes | str:
    """Return what a plain file holds, or in one clause why it is not read."""
    try:
        # Without O_NONBLOCK a pipe in a folder would keep us waiting.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                return NOT_PLAIN
            if facts.st_size > most_bytes:
                return too_large(most_bytes)
            with open(descriptor, "rb", buffering=0, closefd=False) as stream:
                return stream.read()
        finally:
            os.close(descriptor)
    except OSError as error:
        return (
            NOT_PLAIN if error.errno in {errno.ELOOP, errno.ENXIO} else f"cannot be read ({error.strerror})"
        )


def too_large(most_bytes: int) -> str:
    """Return the clause about a file that is larger than any of ours."""
    return f"is larger than {most_bytes:,} bytes, which nothing that bench writes is"


def write_json(path: Path, content: "BaseModel") -> None:
    """Write a document as JSON, folders included. Raises ``InfrastructureError`` if it cannot."""
    with contextlib.suppress(OSError):  # writing says it better
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, content.model_dump_json(indent=1) + "\n")


def read_json(path: Path, kind: type[_Model], name: str, advice: str) -> _Model:
    """Read one document. Raises ``UsageError`` where it is no ``name``, ending with the ``advice``."""
    from pydantic import ValidationError

    content = read_plain_file(path)
    if isinstance(content, str):
        raise UsageError(f"{path} {content}; {advice}")
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        mistake = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, mistake["loc"])) or "the file"
        raise UsageError(f"{path} is not {name} ({where}: {mistake['msg']}); {advice}") from None
