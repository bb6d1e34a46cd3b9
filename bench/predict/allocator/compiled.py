"""Compiles functions of numbers and arrays to machine code with numba, once for each machine and version.

NUMBA_DISABLE_JIT=1 runs them as Python, for a debugger.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import ParamSpec, TypeVar, cast
from unittest.mock import patch

import numba
import numba.np.linalg

with patch.object(numba.np.linalg, "ensure_blas", side_effect=ImportError):
    # Nothing compiled here is linear algebra, for which scipy would be imported.
    import numba.np.arraymath

from bench.io import cache_folder, read_data

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def compiled_entry(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Return a function that is compiled at its first call, or read where that has been done before.

    numba goes by where its file lies. Sides of a gate have bench by a link (``bench.gate.judge``), and would
    compile it once more.
    """
    code = function.__code__
    function.__code__ = code.replace(co_filename=str(Path(code.co_filename).resolve()))
    with patch.object(numba.config, "CACHE_DIR", _folder()):
        try:
            return cast("Callable[_Arguments, _Result]", numba.njit(cache=True)(function))
        except RuntimeError:  # the folder cannot be written to: compile in each process
            return cast("Callable[_Arguments, _Result]", numba.njit(function))


def compiled(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Return a function for entries to call; that Python cannot call it saves a third of the compiling."""
    part = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)  # type: ignore[call-overload]  # not in its stub
    return cast("Callable[_Arguments, _Result]", part(function))


def is_kept() -> bool:
    """Tell whether there is machine code of these sources, or none is made."""
    nothing_is_made: bool = numba.config.DISABLE_JIT  # type: ignore[attr-defined]  # not in its stub
    return nothing_is_made or any(Path(_folder()).rglob("*.nbi"))


@cache
def _folder() -> str:
    """Return where machine code of these sources is kept.

    numba by itself would look at the file of the entry only, and miss a change in what that calls or in
    the constants that are compiled in.
    """
    sources = b"".join(read_data(path) for path in sorted(Path(__file__).parent.glob("*.py")))
    return str(cache_folder() / "compiled" / hashlib.sha256(sources).hexdigest()[:16])
