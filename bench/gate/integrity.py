"""Whether the bench that measured in this process is still as its files have it.

Code under test shares the process with what measures it. What it replaces in bench's modules as it is
imported, by accident or to please, is found here; code that means to deceive can replace this check too, and
native code leaves nothing to be found. The gate's own clock and its reading of memory stand beside.
"""

import builtins
import dis
import inspect
import sys
import sysconfig
import time
import types
from collections.abc import Iterator
from functools import cache, cached_property, partialmethod
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

Codes = frozenset[types.CodeType]
_MOST_DECORATORS = 10  # around one function; a chain that leads back to itself ends too
_CLOCKS = ("monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time", "time", "time_ns")
_DECORATING = (
    "collections",
    "contextlib",
    "functools",
    "typer",
    "pydantic",
    "torch",
    "dataclasses",
    "typing",
)
"""Libraries that leave functions of their own around bench's, or in its classes."""
_OF_MODULES = frozenset(vars(types.ModuleType("any"))) | {"__builtins__"}


def altered(package: Path) -> tuple[str, ...]:
    """Return what of the bench loaded in this process is not what ``package`` has, sorted.

    Functions, methods and plain constants of modules, what modules have imported of one another, modules
    that they import, builtins that they use, and the clocks of ``time``.
    """
    found = [f"time.{name}" for name in _CLOCKS if not _is_clock(getattr(time, name), name)]
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] == "bench" and isinstance(module, types.ModuleType):
            found += [f"{name}{member}" for member in _altered(name, module, package)]
    return tuple(sorted(set(found)))


def _is_clock(function: object, name: str) -> bool:
    return isinstance(function, types.BuiltinFunctionType) and function.__name__ == name


def _altered(name: str, module: types.ModuleType, package: Path) -> Iterator[str]:
    """Yield the members of one module that are not its file's, as ``.member``; the empty one is all of it."""
    stem = package.joinpath(*name.split(".")[1:])
    expected = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
    actual = getattr(module, "__file__", None)
    if actual is None and stem.is_dir() and not expected.is_file():
        return  # a folder without modules of its own
    if actual is None or Path(actual).resolve() != expected.resolve():
        yield f" (from {actual or 'nowhere'})"
        return
    code = SourceFileLoader(name, str(expected)).get_code(name)  # from its cache, where that is as new
    assert code is not None  # noqa: S101 - for the type checker; there is a source
    codes, members = _codes(code), vars(module)
    for own in _defined(code):
        value = members.get(own.co_name)
        if _is_function(own):
            if own.co_name in members and not _is_own(value, codes):
                yield f".{own.co_name}"
        elif isinstance(value, type):
            yield from (f".{own.co_name}.{method}" for method in _methods(value, own, codes))
    yield from _bound_otherwise(code, members)


def _methods(kind: type, code: types.CodeType, codes: Codes) -> Iterator[str]:
    """Yield the methods that are not a class's own, and functions that were added to it."""
    own = {each.co_name for each in _defined(code) if _is_function(each)}
    for name, value in vars(kind).items():
        if name in own:
            fine = _is_own(value, codes)
        else:  # libraries generate special methods, and a field's default can be a function
            strange = isinstance(value, types.FunctionType) and not _is_known(value)
            fine = name.startswith("__") or not (strange or isinstance(value, partialmethod))
        if not fine:
            yield name
    yield from own - vars(kind).keys()


def _bound_otherwise(code: types.CodeType, members: dict[str, Any]) -> Iterator[str]:
    """Yield names that a module takes from another of bench, or gives a plain constant, and that differ."""
    source: dict[str, Any] = {}
    expected: Any = None
    bound: dict[str, list[Any]] = {}  # in branches, one name can be bound more than once
    for step in dis.get_instructions(code):
        match step.opname:
            case "IMPORT_NAME":
                top = step.argval.partition(".")[0]
                known = top == "bench" and sys.modules.get(step.argval)
                source, expected = vars(known) if known else {}, sys.modules.get(top)
            case "IMPORT_FROM":
                expected = source.get(step.argval)
            case "LOAD_CONST":
                expected = step.argval if type(step.argval) in {int, float, str} else None
            case "STORE_NAME":
                bound.setdefault(step.argval, []).append(expected)
                expected = None
            case _:
                expected = None
    for name, values in bound.items():
        own = members.get(name)
        known = own is not None and all(value is not None for value in values)
        if known and not any(own is value or (type(own) is type(value) and own == value) for value in values):
            yield f".{name}"
    yield from (f".{name}" for name in (members.keys() & vars(builtins).keys()) - bound.keys() - _OF_MODULES)


def _defined(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield what a module or class defines under a name; of several, the last."""
    inner = {each.co_name: each for each in code.co_consts if isinstance(each, types.CodeType)}
    yield from (each for name, each in inner.items() if not name.startswith("<"))


def _is_function(code: types.CodeType) -> bool:
    return bool(code.co_flags & inspect.CO_NEWLOCALS)


def _is_own(value: object, codes: Codes) -> bool:
    """Tell whether what is bound to a function's name is that function, perhaps within a known decorator."""
    for _ in range(_MOST_DECORATORS):
        match value:
            case types.FunctionType():
                if value.__code__ in codes:
                    return True
                inner = getattr(value, "__wrapped__", None)
                if inner is None or not _is_known(value):
                    return False
                value = inner
            case property():
                value = value.fget
            case cached_property():
                value = value.func
            case staticmethod() | classmethod():
                value = value.__func__
            case _:
                inner = getattr(value, "__wrapped__", None)  # functools.cache and its like, in C
                if inner is None:  # a decorator may have made data of it
                    return not callable(value) and not isinstance(value, partialmethod)
                value = inner
    return False


def _is_known(function: types.FunctionType) -> bool:
    return function.__code__.co_filename.startswith(_decorators())


@cache
def _decorators() -> tuple[str, ...]:
    """Return how paths of files begin that known decorators are defined in."""
    folders = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    own = str(Path(__file__).parents[1])
    return (own, *(f"{folder}/{name}" for folder in folders for name in _DECORATING))


def _codes(code: types.CodeType) -> Codes:
    """Return a module's code and all code within it."""
    inner = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return frozenset({code}).union(*map(_codes, inner))
