"""The judge of a gate: the bench that was started, which both sides measure with.

Each side is given its package, alone and first on its path, so that the side's environment contributes only
what is under test. Where bench itself is under test on both sides, each measures with its own: that is said.
"""

import hashlib
import os
import secrets
from functools import cache
from pathlib import Path

import bench
from bench.errors import InfrastructureError
from bench.gate.installed import digest_of
from bench.io import cache_folder

PACKAGE = Path(bench.__file__ or "").resolve().parent


@cache
def _digest() -> str:
    """Return what this bench's files are, as a digest of 12 characters."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(PACKAGE)} {digest_of(path)}\n".encode())
    return digest.hexdigest()[:12]


def judge_name() -> str:
    """Return who judges: version and digest."""
    return f"finetune-bench {bench.__version__} ({_digest()})"


def only_bench() -> Path:
    """Return a folder in which there is this package and nothing else, by a link.

    Its own folder is often a site-packages, and all of that would come before the side's. Raises
    ``InfrastructureError`` where the folder cannot be made.
    """
    folder = cache_folder() / "judge" / hashlib.sha256(os.fsencode(PACKAGE)).hexdigest()[:12]
    link = folder / "bench"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if [each.name for each in folder.iterdir()] != ["bench"] or link.resolve() != PACKAGE:
            for each in folder.iterdir():
                each.unlink()
            made = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
            made.symlink_to(PACKAGE, target_is_directory=True)
            made.rename(link)
    except OSError as error:
        raise InfrastructureError(
            f"{folder}: cannot hold a link to this bench for the sides ({error.strerror}); set "
            "FINETUNE_BENCH_CACHE to a folder of your own"
        ) from None
    return folder


def holds_bench(folder: Path | None) -> bool:
    """Tell whether a folder on a side's path has a bench that could serve a gate."""
    return folder is not None and (folder / "bench" / "gate" / "serve.py").is_file()
