"""The git repository of the user's project: its commits, and worktrees of them that do not outlive us."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from bench.errors import InfrastructureError
from bench.io import cache_folder
from bench.workers import interrupts

GIT_TIMEOUT_S = 600  # a worktree of a large project on a slow disk
_HOLD = "hold"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A git repository with a working tree; ``root`` is that, links resolved."""

    root: Path

    def commit_of(self, revision: str) -> str | None:
        """Return the full id of a commit; None where there is no such revision."""
        return _ask(self.root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")

    @property
    def shallow(self) -> bool:
        """Whether older commits are missing."""
        return _ask(self.root, "rev-parse", "--is-shallow-repository") == "true"

    @property
    def dirty(self) -> bool:
        """Whether tracked files have changes that are not committed."""
        return bool(_ask(self.root, "status", "--porcelain", "--untracked-files=no"))

    @contextlib.contextmanager
    def worktree(self, commit: str) -> Iterator[Path]:
        """Check a commit out into a folder of its own, which is removed afterwards, however that comes.

        What a killed process left is removed by the next. No hook is run; submodules stay empty. Raises
        ``InfrastructureError`` where git cannot do it.
        """
        home = cache_folder() / "worktrees"
        home.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            with FileLock(home / ".lock"):
                _remove_left_over(home)
                folder = Path(tempfile.mkdtemp(dir=home))
                stack.enter_context(_held_open(folder / _HOLD))
            tree = folder / "tree"
            stack.callback(_remove, folder)
            with interrupts.held():  # git killed halfway would leave its notes of this tree behind
                done = _git(self.root, "worktree", "add", "--detach", str(tree), commit)
            if done.returncode != 0:
                raise InfrastructureError(
                    f"git cannot check {commit[:12]} out ({_last_line(done.stderr)}); see git worktree add"
                )
            yield tree


def around(folder: Path) -> Repository | None:
    """Return the repository that a folder lies in; None where git finds none, or is not installed."""
    root = _ask(folder, "rev-parse", "--show-toplevel")
    return None if not root else Repository(root=Path(root).resolve())


def _ask(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, None where it fails."""
    try:
        done = _git(folder, *arguments)
    except InfrastructureError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _git(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run git without hooks, questions, or the variables of a git command that we may be a hook of."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        return subprocess.run(  # noqa: S603 - no shell, and no argument that could be an option
            ["git", "-c", "core.hooksPath=/dev/null", "-C", str(folder), *arguments],  # noqa: S607 - the user's git
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal is for us, and we wait for git
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InfrastructureError(f"git could not be run ({error}); install git, or try again") from error


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2].removeprefix("fatal: ") or "it says nothing"


@contextlib.contextmanager
def _held_open(path: Path) -> Iterator[None]:
    """Hold a lock that the kernel frees with this process, so that others see that the folder is in use."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _remove_left_over(home: Path) -> None:
    """Remove the worktrees of processes that are gone."""
    for folder in home.iterdir():
        with contextlib.suppress(OSError), (folder / _HOLD).open("rb") as hold:
            fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a worktree and the repository's notes of it."""
    tree = folder / "tree"
    if (tree / ".git").is_file():
        with contextlib.suppress(InfrastructureError):
            _git(tree, "worktree", "remove", "--force", str(tree))
    shutil.rmtree(folder, ignore_errors=True)
