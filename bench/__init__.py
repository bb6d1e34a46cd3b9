"""Measure and predict the memory, speed and accuracy of full, LoRA and QLoRA fine-tuning.

The functions here are what the commands of the same name do, for notebooks and scripts: results come back as
objects that hold pandas DataFrames. Nothing heavy is imported before one of them is asked for.
"""

from typing import TYPE_CHECKING

__all__ = ["__version__", "fit", "load", "plan", "run"]

if TYPE_CHECKING:
    from bench.api import fit, load, plan, run

    __version__: str
else:

    def __getattr__(name: str) -> object:
        """Look up what is asked for: every command imports this module first."""
        if name not in __all__:
            raise AttributeError(f"module 'bench' has no attribute {name!r}")
        if name != "__version__":
            from bench import api

            return getattr(api, name)
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("finetune-bench")
        except PackageNotFoundError:
            return "0+unknown"  # a checkout that is not installed
