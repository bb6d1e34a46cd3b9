"""Whether the bench that measured in this process is still as it was imported.

Code under test shares the process with what measures it. What it changes in bench, by accident or to please,
is found here: what modules and classes hold, defaults and tables included, and whether what bench calls of
other libraries is theirs. Code that means to deceive can change this check too, and native code leaves
nothing to be found. The gate's own clock and its reading of memory stand beside.
"""

import sys
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import _lru_cache_wrapper, cached_property, partial, partialmethod
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from operator import itemgetter
from pathlib import Path
from typing import Any

Parts = dict[str, object]
_JUDGES = ("bench.probes", "bench.records", "bench.workers")
"""What these call has to be its library's own. Of the others, clocks and the like."""
_DEPTH = 4  # tables within tables, and modules within torch
_TRACING = frozenset({"sys.settrace", "sys.setprofile", "sys.monitoring.register_callback"})
_EMPTY = "[]"
_PLAIN = (types.CodeType, str, int, float, bool)
_MACHINE = frozenset(sys.builtin_module_names) - {"builtins"}
_IN_C = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
)
_imported: dict[str, Parts] = {}  # by module, as it was
_names_in: dict[str, frozenset[str]] = {}  # by module; read as it is imported, not by each worker
_traced: set[str] = set()


def note(event: str) -> None:
    """Take an audit event: whoever traces can change the locals of what runs."""
    if event in _TRACING:
        _traced.add(event)


class _Loader(SourceFileLoader):
    def exec_module(self, module: types.ModuleType) -> None:
        super().exec_module(module)
        _imported[module.__name__] = dict(_parts(module))

    def get_code(self, fullname: str) -> types.CodeType | None:
        code = super().get_code(fullname)
        _names_in[fullname] = frozenset() if code is None else _names(code)
        return code


class _Finder:
    """Finds bench's modules where they are, and has them remembered."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: types.ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] != "bench":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(name, spec.origin)
        return spec


def watch() -> None:
    """Remember each module of bench from here on as it is once imported, before others can change it."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
        _imported.update([(name, dict(_parts(module))) for name, module in _modules()])


def altered(package: Path) -> tuple[str, ...]:
    """Return what of bench is not as it was imported from ``package``, or calls what is not its library's."""
    found, called = set(_traced), dict[Any, set[str]]()
    for name, module in _modules():
        stem = package.joinpath(*name.split(".")[1:])
        files = {stem.with_suffix(".py").resolve(), (stem / "__init__.py").resolve()}
        file = getattr(module, "__file__", None)
        if file is None and stem.is_dir() and not (stem / "__init__.py").is_file():
            continue  # a folder without modules of its own
        if name not in _imported or file is None or Path(file).resolve() not in files:
            found.add(f"{name} (from {file or 'nowhere'})")
        else:
            found |= {f"{name}{part}" for part in _changed(_imported[name], dict(_parts(module)))}
            for holder, names in _called(name, module):
                called.setdefault(holder, set()).update(names)
    found |= {name for holder, names in called.items() for name in _not_theirs(holder, names, set())}
    return tuple(sorted(found))


def _modules() -> list[tuple[str, types.ModuleType]]:
    everything: dict[str, Any] = {**sys.modules}  # code under test can put anything there
    found = [(name, held) for name, held in everything.items() if name.partition(".")[0] == "bench"]
    return sorted((each for each in found if isinstance(each[1], types.ModuleType)), key=itemgetter(0))


def _changed(before: Parts, now: Parts) -> Iterator[str]:
    """Yield what differs. A table that is empty at first is filled by bench itself, as a cache is."""
    caches = {name.removesuffix(_EMPTY) for name in before if name.endswith(_EMPTY)}
    for name in before.keys() | now.keys():
        alike = name in before and name in now and (before[name] is now[name] or before[name] == now[name])
        if not alike and not any(name.startswith(f"{cache}[") for cache in caches):
            yield name


def _parts(module: types.ModuleType) -> Iterator[tuple[str, object]]:
    """Yield what a module holds; its own submodules come as they are imported."""
    for name, value in [*vars(module).items()]:
        own = isinstance(value, types.ModuleType) and value.__name__ == f"{module.__name__}.{name}"
        if not own and _counts(name, value):
            yield from _state(f".{name}", value, module.__name__)


def _state(label: str, value: Any, home: str, depth: int = _DEPTH) -> Iterator[tuple[str, object]]:
    """Yield a value and what can be changed in it: of the module's functions and classes, and of tables."""
    yield label, value if type(value) in _PLAIN else id(value)
    for name, held in _inside(value, home).items() if depth else ():
        yield from _state(f"{label}{'' if name[0] == '[' else '.'}{name}", held, home, depth - 1)


def _inside(value: Any, home: str) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    match value:
        case types.FunctionType() if value.__module__ == home:
            inner = {name: getattr(value, name) for name in ("__code__", "__defaults__", "__kwdefaults__")}
        case type() if value.__module__ == home:
            inner = {name: held for name, held in [*vars(value).items()] if _counts(name, held)}
        case property() | cached_property():
            inner = {"getter": getattr(value, "fget", None) or getattr(value, "func", None)}
        case dict() | types.MappingProxyType():
            inner = {f"[{key!r}]": held for key, held in [*value.items()]} or {_EMPTY: None}
        case list() | tuple():
            inner = {f"[{place}]": held for place, held in enumerate(value)} or {_EMPTY: None}
        case set():
            inner = {f"[{held!r}]": None for held in [*value]} or {_EMPTY: None}
        case staticmethod() | classmethod() | _lru_cache_wrapper():
            inner = {"__wrapped__": value.__wrapped__}
        case _ if is_dataclass(value):
            inner = {field.name: getattr(value, field.name, None) for field in fields(value)}
    return inner


def _counts(name: str, held: object) -> bool:
    """Leave out what Python and libraries keep in a module or class, and complete when it is first used."""
    special = name.startswith(("__", "_abc_"))
    return not special or isinstance(held, types.FunctionType | staticmethod | classmethod)


def _called(name: str, module: types.ModuleType) -> Iterator[tuple[Any, frozenset[str]]]:
    """Yield modules and classes of other libraries that a module names, with all names in its code."""
    judges = name.startswith(_JUDGES)
    held = [
        (given, each) for given, each in vars(module).items() if isinstance(each, types.ModuleType | type)
    ]
    holders = [(given, each) for given, each in held if judges or each.__name__ in _MACHINE]
    loader = module.__spec__ and module.__spec__.loader
    if holders and name not in _names_in and isinstance(loader, SourceFileLoader):
        code = loader.get_code(name)
        _names_in[name] = frozenset() if code is None else _names(code)
    names = _names_in.get(name, frozenset())
    yield from ((each, names) for given, each in holders if given in names and _library(each) != "bench")


def _names(code: types.CodeType) -> frozenset[str]:
    inner = (_names(each) for each in code.co_consts if isinstance(each, types.CodeType))
    return frozenset(code.co_names).union(*inner)


def _not_theirs(holder: Any, names: set[str], seen: set[int]) -> Iterator[str]:
    """Yield which members of these names of a module or class were put there by another library."""
    seen.add(id(holder))
    library = _library(holder)
    place = holder.__name__ if isinstance(holder, types.ModuleType) else f"{library}.{holder.__name__}"
    for each in getattr(holder, "__mro__", (holder,)):
        for name in names & vars(each).keys():
            member = vars(each)[name]
            if isinstance(member, types.ModuleType | type):
                if id(member) not in seen and _library(member) == library:
                    yield from _not_theirs(member, names, seen)
            elif not name.startswith("__") and not _is_theirs(member, name, each):
                yield f"{place}.{name}"


def _is_theirs(member: Any, name: str, holder: Any) -> bool:
    own = {_library(holder), *sys.stdlib_module_names}
    while isinstance(member, staticmethod | classmethod | property):
        member = member.fget if isinstance(member, property) else member.__func__
    if isinstance(member, _IN_C):  # another of the same library has its own name there
        return member.__name__ == name or member.__name__ not in vars(holder)
    if isinstance(member, types.FunctionType):
        return str(member.__globals__.get("__name__")).partition(".")[0] in own
    wraps = isinstance(member, partial | partialmethod)
    return not wraps and (not callable(member) or _library(type(member)) in own)


def _library(thing: object) -> str:
    """Return the package that a module or class is of."""
    name = thing.__name__ if isinstance(thing, types.ModuleType) else getattr(thing, "__module__", None)
    return str(name).partition(".")[0]
