"""Package versions laid over the environment as it is, installed once into a folder of their own.

With them goes what pip finds them to need besides: what the environment lacks, or has in a version that does
not do. That is told, and so are requirements of the rest on these that are then unmet.
"""

import hashlib
import os
import re
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import Version

from bench.errors import InfrastructureError
from bench.io import cache_folder, made_once, parse_json, read_data
from bench.records.readings import Caveat
from bench.records.requirements import Installed, installed, unmet
from bench.workers import interrupts

MOST_UNMET = 5  # named; more say little more


def overlay(pins: Sequence[tuple[str, str]]) -> Path:
    """Return the folder that holds these versions, installing them first if need be.

    Its name says what is installed, and for which python and platform. Raises ``InfrastructureError`` with
    pip's last line where they cannot be had.
    """
    content = repr((tuple(pins), "resolved", sys.implementation.cache_tag, sysconfig.get_platform()))
    names = "-".join(f"{name}-{version}" for name, version in pins)[:80]
    folder = cache_folder() / "overlays" / f"{names}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    return made_once(folder, partial(_install, pins))


def _install(pins: Sequence[tuple[str, str]], target: Path) -> None:
    """Install versions with what they need and the environment has not; the rest stays as it is."""
    asked = [f"{name}=={version}" for name, version in pins]
    report = target / "report.json"
    _pip(asked, "install", "--quiet", "--dry-run", "--report", str(report), *asked)
    made = parse_json(read_data(report))["install"]
    needed = {canonicalize_name(each["metadata"]["name"]): each["metadata"]["version"] for each in made}
    every = [f"{name}=={version}" for name, version in (needed | dict(pins)).items()]
    _pip(every, "install", "--quiet", "--no-deps", "--no-compile", "--target", str(target), *every)


def released(package: str) -> tuple[str, ...]:
    """Return the releases of a package that pip finds for this python, the oldest first."""
    said = _pip([package], "index", "versions", package)
    found = re.search(r"^Available versions: (.+)$", said, re.MULTILINE)
    return tuple(sorted(found[1].split(", "), key=Version)) if found else ()


def _pip(asked: Sequence[str], *arguments: str) -> str:
    """Run pip and return what it said. Raises ``InfrastructureError`` with its reason where it fails."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pip", *arguments, "--no-input", "--disable-pip-version-check"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        start_new_session=True,
    )
    try:
        with interrupts.waiting():
            said, _ = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode != 0:
        lines = said.splitlines() or ["it said nothing"]
        errors = [line for line in lines if line.startswith("ERROR") and "ResolutionImpossible" not in line]
        why = [*lines, *errors][-1].removeprefix("ERROR: ").strip().rstrip(".")
        raise InfrastructureError(
            f"pip cannot {arguments[0]} {', '.join(asked)} ({why}); check the versions, or give a virtual "
            "environment that has them"
        )
    return said


def told_of(overlaid: Path, pins: Mapping[str, str]) -> Iterator[Caveat]:
    """Say what differs from the environment besides what was asked for, and what is then unmet."""
    beneath, over = installed(sys.path), installed([str(overlaid)])
    besides = [
        f"{name} {each.version} ({beneath[name].version if name in beneath else 'none'} without)"
        for name, each in sorted(over.items())
        if name not in pins
    ]
    if besides:
        asked = " and ".join(f"{name} {version}" for name, version in pins.items())
        message = f"Laid over besides, as pip finds {asked} to need it: {', '.join(besides)}."
        yield Caveat("companions", message)
    sentences = unmet_by(over, beneath)
    more = len(sentences) - MOST_UNMET
    for sentence in (
        *sentences[:MOST_UNMET],
        *([f"{more} more requirements are unmet."] if more > 0 else []),
    ):
        yield Caveat("unmet-requirement", sentence)


def unmet_by(over: Mapping[str, Installed], beneath: Mapping[str, Installed]) -> tuple[str, ...]:
    """Return a sentence for each requirement of or on an overlay's packages that is left unmet."""
    everything = {**beneath, **over}
    return tuple(f"{one.clause}." for one in unmet(everything) if one.name in over or one.needed in over)
