"""Package versions laid over the environment as it is: installed once into a folder of their own.

Dependencies are not resolved, so that nothing else changes; requirements that are then unmet are named.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path

from filelock import FileLock
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from bench.errors import InfrastructureError
from bench.gate.references import Packages
from bench.io import cache_folder
from bench.workers import interrupts

_COMPLETE = ".complete"


def overlay(packages: Packages) -> Path:
    """Return the folder that holds the packages, installing them first if need be.

    Raises ``InfrastructureError`` with pip's last line where they cannot be had.
    """
    folder = cache_folder() / "overlays" / _key(packages)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / _COMPLETE).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
                target = Path(temporary) / "target"
                _install(packages, target)
                (target / _COMPLETE).touch()
                target.rename(folder)
    return folder


def _key(packages: Packages) -> str:
    """Return a name for what is installed: the versions, and the python and platform it is for."""
    names = "-".join(f"{name}-{version}" for name, version in packages.pins)[:80]
    content = repr((packages.pins, sys.implementation.cache_tag, sysconfig.get_platform()))
    return f"{names}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _install(packages: Packages, target: Path) -> None:
    pins = [f"{name}=={version}" for name, version in packages.pins]
    options = ["--no-deps", "--no-input", "--disable-pip-version-check", "--quiet", "--target", str(target)]
    process = subprocess.Popen(  # noqa: S603 - no shell; every pin was checked to be name==version
        [sys.executable, "-m", "pip", "install", *options, *pins],
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
        errors = [line for line in said.splitlines() if line.startswith("ERROR")] or said.splitlines()
        last = errors[-1].removeprefix("ERROR: ").strip() if errors else "it said nothing"
        raise InfrastructureError(
            f"pip cannot install {', '.join(pins)} ({last.rstrip('.')}); check the versions, or give a "
            "virtual "
            "environment that has them"
        )


def unmet(folder: Path, beneath: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return a sentence for each requirement of or on the overlay's packages that is left unmet.

    Metadata only, as ``pip check`` does it. ``beneath`` is the path it lies over, this process's by default.
    """
    over = _by_name(distributions(path=[str(folder)]))
    all_ = _by_name(distributions(path=[*(sys.path if beneath is None else beneath)])) | over
    sentences = []
    for name, distribution in sorted(all_.items()):
        for requirement in _requirements(distribution):
            needed = canonicalize_name(requirement.name)
            if name not in over and needed not in over:
                continue
            found = all_.get(needed)
            if found is not None and requirement.specifier.contains(found.version, prereleases=True):
                continue
            there = f"{needed} {found.version} is there" if found is not None else "it is not installed"
            sentences.append(
                f"{name} {distribution.version} needs {requirement.name}{requirement.specifier}, and "
                f"{there}; "
                "dependencies of laid-over packages are not resolved."
            )
    return tuple(sentences)


def _by_name(found: Iterable[Distribution]) -> dict[str, Distribution]:
    """Return distributions by canonical name; the first on the path wins, as it does in an import."""
    named: dict[str, Distribution] = {}
    for distribution in found:
        name = distribution.metadata["Name"]
        if name:
            named.setdefault(canonicalize_name(name), distribution)
    return named


def _requirements(distribution: Distribution) -> list[Requirement]:
    """Return what a distribution needs here, extras left out."""
    found = []
    for text in distribution.requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found.append(requirement)
    return found
