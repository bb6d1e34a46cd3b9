"""Revisions and what they hold, read from the repository's objects: no index or hook is touched."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from bench.errors import InfrastructureError, UsageError
from bench.io import NOT_PLAIN, too_large

_PLAIN_FILES = ("100644", "100755")


def commit_of(revision: str, folder: Path | None = None) -> str:
    """Return the full id of a revision of the repository around ``folder``, the current one by default.

    Raises ``UsageError`` where there is no such revision; a name that begins with a dash is never an option.
    """
    found = run_git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    commit = found.stdout.decode(errors="replace").strip()
    if found.returncode != 0 or not commit:
        raise UsageError(
            f"git finds no revision {revision!r} here; name a commit, tag or branch of this repository, "
            "or an existing folder"
        )
    return commit


def head_of(folder: Path | None = None) -> str | None:
    """Return the commit that is checked out around ``folder``; None outside a repository."""
    try:
        return commit_of("HEAD", folder)
    except (UsageError, InfrastructureError):
        return None


def source_state(source: Path) -> dict[str, str | bool | None]:
    """Return commit and cleanliness of a checkout whose top is ``source``; None where it is not that.

    A package installed inside someone else's repository is not that repository's code.
    """
    commit, changes = None, None
    if said(source, "rev-parse", "--show-toplevel") == str(source):
        commit = said(source, "rev-parse", "HEAD")
        changes = said(source, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else changes != ""}


def committed_files(
    revision: str, path: str, *, most_bytes: int, folder: Path | None = None
) -> Iterator[tuple[str, bytes | str]]:
    """Yield name and content of each ``.json`` file right in a committed folder, or of one committed file.

    In the place of a content stands a sentence where it cannot be had. ``path`` is as git takes it after
    the colon: from the top of the repository, or with ``./`` from here. Raises ``UsageError`` where the
    revision or the path does not exist.
    """
    commit = commit_of(revision, folder)
    place = f"{commit}:{path.rstrip('/')}"
    kind = run_git(folder, "cat-file", "-t", place).stdout.decode().strip()
    if kind == "blob":
        yield from _contents(folder, [("100644", place, path)], most_bytes)
        return
    if kind != "tree":
        raise UsageError(f"{revision} has no folder or file {path!r}; see git ls-tree {commit[:12]}")
    listed = run_git(folder, "ls-tree", "-z", "--full-tree", place).stdout.decode(errors="surrogateescape")
    entries = []
    for line in filter(None, listed.split("\0")):
        facts, _, name = line.partition("\t")
        mode, _, object_id = facts.split(" ")
        if PurePosixPath(name).suffix == ".json" and not name.startswith("."):
            entries.append((mode, object_id, name))
    yield from _contents(folder, entries, most_bytes)


def _contents(
    folder: Path | None, entries: list[tuple[str, str, str]], most_bytes: int
) -> Iterator[tuple[str, bytes | str]]:
    """Yield what lies under each (mode, object, name), asked of one git process in turn."""
    with subprocess.Popen(  # noqa: S603 - no shell, and arguments of our own
        _command(folder, "cat-file", "--batch"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
    ) as process:
        assert process.stdin is not None  # noqa: S101 - asked for above
        assert process.stdout is not None  # noqa: S101 - the same
        for mode, object_id, name in entries:
            if mode not in _PLAIN_FILES:
                yield name, NOT_PLAIN
                continue
            process.stdin.write(f"{object_id}\n".encode())
            process.stdin.flush()
            yield name, _one_content(process.stdout, most_bytes)


def _one_content(stream: IO[bytes], most_bytes: int) -> bytes | str:
    """Read one answer of ``git cat-file --batch``: a line with the size, the content, a line feed."""
    header = stream.readline().split()
    if len(header) != len(("object", "type", "size")):
        return "is not in this clone; fetch it with git"
    size = int(header[2])
    content = stream.read(size)
    stream.read(1)
    return content if size <= most_bytes else too_large(most_bytes)


def said(folder: Path, *arguments: str, timeout_s: float = 5) -> str | None:
    """Return what git prints, or None where it fails or takes too long to wait for."""
    try:
        done = run_git(folder, *arguments, timeout_s=timeout_s)
    except InfrastructureError:
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def run_git(
    folder: Path | None, *arguments: str, timeout_s: float = 60, lazy_fetch: bool = False
) -> "subprocess.CompletedProcess[bytes]":
    """Run git and wait for it, whether or not it succeeds; ``lazy_fetch`` lets a partial clone be completed.

    Raises ``InfrastructureError`` where it cannot be run, or takes longer than that.
    """
    try:
        return subprocess.run(  # noqa: S603 - no shell; a name from outside never stands where an option may
            _command(folder, *arguments),
            capture_output=True,
            check=False,
            env=_environment() | {"GIT_NO_LAZY_FETCH": "0" if lazy_fetch else "1"},
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in a terminal is for us, and we wait for git
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InfrastructureError(f"git could not be run ({error}); install git, or name a folder") from error


def _command(folder: Path | None, *arguments: str) -> list[str]:
    return ["git", "--no-pager", "-C", str(folder or Path.cwd()), *arguments]


def _environment() -> dict[str, str]:
    """Return our own without the variables of a git command that we may be a hook of."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return own | {
        "LC_ALL": "C",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",
    }
