"""Measure and predict the memory, speed and accuracy of full, LoRA and QLoRA fine-tuning.

The functions here are what the commands of the same name do, for notebooks and scripts: results come back as
objects that hold pandas DataFrames. Nothing heavy is imported before one of them is called.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.api import Bounds, Plans, Results

    __version__: str

__all__ = ["__version__", "fit", "load", "plan", "run"]


if not TYPE_CHECKING:  # so that a mistyped name is found

    def __getattr__(name: str) -> str:
        """Look up the installed version when it is asked for: every command imports this module first."""
        if name != "__version__":
            raise AttributeError(f"module 'bench' has no attribute {name!r}")
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("finetune-bench")
        except PackageNotFoundError:
            return "0+unknown"  # a checkout that is not installed


def load(*paths: str | Path) -> "Results":
    """Return the records of results folders and record files, each run once.

    Raises ``bench.errors.UsageError`` where a path holds no record.
    """
    from bench.api import Results

    return Results.load(*map(Path, paths))


def run(scenario: str | Path, *, only: str | None = None, repeats: int = 1) -> "Results":
    """Run the cells of a scenario that are not under results/<scenario> yet; return the records of all.

    ``only`` is a glob on ids of cells. Raises ``bench.errors.UsageError`` for a mistake in the file.
    """
    from bench.api import run

    return run(Path(scenario), only=only, repeats=repeats)


def plan(
    scenario: str | Path, *, gpu: Sequence[str] = (), memory: Sequence[str] = (), only: str | None = None
) -> "Plans":
    """Predict the peak memory of a scenario's cells on cards (``"rtx4090"``) or sizes (``"24GiB"``).

    Runs nothing. Raises ``bench.errors.UsageError`` for an unknown card or a mistake in the file.
    """
    from bench.api import plan

    return plan(Path(scenario), gpu=gpu, memory=memory, only=only)


def fit(  # noqa: PLR0913 - what can be chosen
    model: str,
    *,
    gpu: str | None = None,
    memory: str | None = None,
    methods: Sequence[str] = ("full", "lora", "qlora"),
    lengths: Sequence[int] = (512, 1024, 2048, 4096),
    rank: int = 16,
) -> "Bounds":
    """Find the largest batch, sequence length and rank of each method that fit on one card or size.

    Runs nothing. Raises ``bench.errors.UsageError`` unless exactly one of ``gpu`` and ``memory`` is given.
    """
    from bench.api import fit

    return fit(model, gpu=gpu, memory=memory, methods=methods, lengths=lengths, rank=rank)
