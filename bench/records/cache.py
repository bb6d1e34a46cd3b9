"""Where this suite keeps what it can make or fetch again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder, which may not exist yet: $FINETUNE_BENCH_CACHE, else under $XDG_CACHE_HOME."""
    given = os.environ.get("FINETUNE_BENCH_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-bench"
