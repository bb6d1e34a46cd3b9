"""Revisions and what they hold, read from the repository's objects: no index or hook is touched."""

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.errors import InfrastructureError, UsageError
from bench.io import NOT_PLAIN, too_large

_PLAIN_FILES = ("100644", "100755")


def commit_of(revision: str) -> str:
    """Return the full id of a revision of the repository around the current folder.

    Raises ``UsageError`` where there is no such revision; a name that begins with a dash is never an option.
    """
    found = run_git(None, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    commit = found.stdout.decode(errors="replace").strip()
    if found.returncode != 0 or not commit:
        raise UsageError(
            f"git finds no revision {revision!r} here; name a commit, tag or branch of this repository, "
            "or an existing folder"
        )
    return commit


def source_state(source: Path) -> dict[str, str | bool | None]:
    """Return commit and cleanliness of a checkout whose top is ``source``; None where it is not that.

    A package installed inside someone else's repository is not that repository's code.
    """
    commit, changes = None, None
    if said(source, "rev-parse", "--show-toplevel") == str(source):
        commit = said(source, "rev-parse", "HEAD")
        changes = said(source, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else changes != ""}


def committed_files(revision: str, path: str, *, most_bytes: int) -> Iterator[tuple[str, bytes | str]]:
    """Yield name and content of each ``.json`` file right in a committed folder, or of one committed file.

    In the place of a content stands a sentence where it cannot be had. ``path`` is as git takes it after
    the colon: from the top of the repository, or with ``./`` from here. Raises ``UsageError`` where the
    revision or the path does not exist.
    """
    commit = commit_of(revision)
    place = f"{commit}:{path.rstrip('/')}"
    kind = run_git(None, "cat-file", "-t", place).stdout.decode().strip()
    if kind not in {"blob", "tree"}:
        raise UsageError(f"{revision} has no folder or file {path!r}; see git ls-tree {commit[:12]}")
    if kind == "blob":
        entries = [("100644", place, path)]
    else:
        listed = run_git(None, "ls-tree", "-z", "--full-tree", place).stdout.decode(errors="surrogateescape")
        found = re.findall(r"(\d+) \w+ (\w+)\t([^\0]+)\0", listed)
        entries = [each for each in found if each[2].endswith(".json") and not each[2].startswith(".")]
    yield from _contents(entries, most_bytes)


def _contents(entries: Iterable[tuple[str, str, str]], most_bytes: int) -> Iterator[tuple[str, bytes | str]]:
    """Yield what lies under each (mode, object, name), asked of one git process in turn.

    It answers with a line of object, type and size, the content, and a line feed.
    """
    command, pipe = ["git", "cat-file", "--batch"], subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=_environment()
    ) as process:
        assert process.stdin is not None  # noqa: S101 - asked for above
        assert process.stdout is not None  # noqa: S101 - the same
        for mode, object_id, name in entries:
            if mode not in _PLAIN_FILES:
                yield name, NOT_PLAIN
                continue
            process.stdin.write(f"{object_id}\n".encode())
            process.stdin.flush()
            header = process.stdout.readline().split()
            if len(header) != len(("object", "type", "size")):
                yield name, "is not in this clone; fetch it with git"
                continue
            content = process.stdout.read(int(header[2]))
            process.stdout.read(1)
            yield name, content if len(content) <= most_bytes else too_large(most_bytes)


def said(folder: Path, *arguments: str, timeout_s: float = 5, lazy_fetch: bool = False) -> str | None:
    """Return what git prints, or None where it fails or takes too long to wait for."""
    try:
        done = run_git(folder, *arguments, timeout_s=timeout_s, lazy_fetch=lazy_fetch)
    except InfrastructureError:
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def run_git(
    folder: Path | None, *arguments: str, timeout_s: float = 60, lazy_fetch: bool = False
) -> "subprocess.CompletedProcess[bytes]":
    """Run git in a folder, None being the current one, and wait for it, whether or not it succeeds.

    ``lazy_fetch`` lets a partial clone be completed. Raises ``InfrastructureError`` where it cannot be run
    or takes longer than that.
    """
    try:
        return subprocess.run(
            ["git", "--no-pager", *arguments],  # noqa: S607 - git is on the path
            cwd=folder,
            capture_output=True,
            check=False,
            env=_environment() | {"GIT_NO_LAZY_FETCH": "0" if lazy_fetch else "1"},
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in a terminal is for us, and we wait for git
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InfrastructureError(f"git could not be run ({error}); install git, or name a folder") from error


def _environment() -> dict[str, str]:
    """Return our own without the variables of a git command that we may be a hook of."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    offline = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1"}
    return own | {"LC_ALL": "C"} | offline
