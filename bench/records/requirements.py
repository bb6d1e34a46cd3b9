"""What installed packages need of each other, by their metadata, and which library cannot be imported."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import distributions
from traceback import walk_tb
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from bench.errors import first_line

_CARRIES = frozenset({*sys.stdlib_module_names, "bench"})


class Unmet(NamedTuple):
    """A requirement that is not met: whose, of what, and the clause that says so."""

    name: str
    needed: str
    clause: str


class Installed(NamedTuple):
    """What a distribution's metadata say, read once: parsing them takes a millisecond."""

    version: str
    requires: tuple[str, ...]


def installed(path: Sequence[str]) -> dict[str, Installed]:
    """Return distributions by canonical name; the first on the path wins, as it does in an import."""
    found = [each.metadata for each in distributions(path=[*path])]
    return {
        canonicalize_name(one["Name"]): Installed(one["Version"], (*(one.get_all("Requires-Dist") or ()),))
        for one in reversed(found)
        if one["Name"]
    }


def unmet(everything: Mapping[str, Installed]) -> Iterator[Unmet]:
    """Yield every requirement that is left unmet among these, as ``pip check`` finds them."""
    for name, distribution in sorted(everything.items()):
        for requirement in _requirements(distribution):
            needed = canonicalize_name(requirement.name)
            found = everything.get(needed)
            if found is None or not requirement.specifier.contains(found.version, prereleases=True):
                there = f"{needed} {found.version} is there" if found is not None else "it is not installed"
                what = f"{requirement.name}{requirement.specifier}"
                yield Unmet(name, needed, f"{name} {distribution.version} needs {what}, and {there}")


def _requirements(distribution: Installed) -> Iterator[Requirement]:
    """Yield what a distribution needs here, extras left out."""
    for text in distribution.requires:
        with contextlib.suppress(InvalidRequirement):
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                yield requirement


def unimportable(error: ImportError) -> str:
    """Say which library could not be imported, and which of its requirements is not met.

    Libraries that import on demand wrap the first error, and name everything but what is missing.
    """
    links: list[BaseException] = [error]
    while (link := links[-1].__cause__ or links[-1].__context__) is not None and link not in links:
        links.append(link)
    first = next(link for link in reversed(links) if isinstance(link, ImportError))
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(first.__traceback__)]
    packages = [name.partition(".")[0] for name in reversed(modules)]
    library = next((name for name in packages if name not in _CARRIES), "a library")
    everything = installed(sys.path)
    own, missing = (canonicalize_name(name) for name in (library, (first.name or "").partition(".")[0]))
    left = [*unmet(everything)]
    told = [one for one in left if one.needed == missing] or [one for one in left if one.name == own]
    why = "; ".join(one.clause for one in told) or "no requirement that it states is unmet"
    version = f" {everything[own].version}" if own in everything else ""
    said = first_line(first).partition(" (/")[0]  # and not where it lies
    return (
        f"{library}{version} cannot be imported here ({said}): {why}; install what is missing, or choose "
        "versions that fit together."
    )
