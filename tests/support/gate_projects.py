"""What a REF may stand for, made small: wheels, git repositories and virtual environments. No network."""

import os
import subprocess
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path


def make_wheel(folder: Path, name: str, version: str, requires: Sequence[str] = ()) -> Path:
    """Write the wheel of a package that says its version."""
    folder.mkdir(parents=True, exist_ok=True)
    module = name.replace("-", "_")
    metadata = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {each}" for each in requires)]
    info = f"{module}-{version}.dist-info"
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{module}/__init__.py", f"__version__ = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", "\n".join(["Metadata-Version: 2.1", *metadata]) + "\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def git(folder: Path, *arguments: str) -> str:
    """Run git as nobody in particular and return what it prints."""
    identity = {
        f"GIT_{role}_{what}": "nobody@example.org"
        for role in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],  # noqa: S607 - git is where it is
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **identity},
    )
    return done.stdout.strip()


def write_project(folder: Path, version: str, *, name: str = "gated_package") -> None:
    """Write a project with one package under src/."""
    package = folder / "src" / name
    package.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\nversion = "{version}"\n')
    (package / "__init__.py").write_text(f"__version__ = {version!r}\n")


def make_repository(folder: Path, versions: Sequence[str]) -> Path:
    """Write a project's repository with a commit and a tag for each version, such as v1.0."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    for version in versions:
        write_project(folder, version)
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "-m", version)
        git(folder, "tag", f"v{version}")
    return folder


def make_venv(folder: Path, *, all_packages: bool) -> Path:
    """Make a virtual environment that is empty, or sees what this one has installed."""
    venv.create(folder, with_pip=False, symlinks=True)
    if all_packages:
        (packages,) = folder.glob("lib/python*/site-packages")
        here = sysconfig.get_path("purelib")
        (packages / "all.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    return folder
