"""The fingerprint: what it holds, what it must never hold, and control groups of both versions."""

import getpass
import platform
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bench.records.environment import control_group_files, cpu_multiplies_bf16, read_environment
from bench.records.git import source_state


def test_the_fingerprint_names_machine_versions_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions of what shapes a measurement, the processor, and thread settings are there."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = read_environment()
    assert found.versions["python"] == platform.python_version()
    assert {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "lm-eval"} <= set(found.versions)
    assert found.machine["architecture"] == platform.machine()
    assert isinstance(found.machine["cpu_cores"], int)
    assert found.threads["OMP_NUM_THREADS"] == "3"


def test_no_secret_and_no_name_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host, user, other variables, and an odd value of a listed one stay out."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "$(secret)\nsecret")
    text = msgspec.json.encode(read_environment()).decode()
    assert "secret" not in text
    assert f'"{platform.node()}"' not in text
    assert f'"{getpass.getuser()}"' not in text
    assert str(Path.home()) + "/" not in text


@pytest.mark.parametrize(
    ("told", "has"),
    [
        ("flags : fpu avx2\n", False),
        ("flags : avx2 avx512bw avx512dq avx512vl\n", True),
        ("Features : fp asimd bf16\n", True),
        ("Features : fp asimd\n", False),
        ("", True),
    ],
)
def test_what_multiplies_bf16_is_told_by_its_flags(
    monkeypatch: pytest.MonkeyPatch, told: str, *, has: bool
) -> None:
    """x86 needs AVX-512, Arm bf16; a processor that tells nothing is not warned about."""
    monkeypatch.setattr("bench.records.environment.kernel_text", {Path("/proc/cpuinfo"): told}.get)
    assert cpu_multiplies_bf16() is has


def test_it_is_read_without_torch() -> None:
    """The parent process stays light: no torch, no pandas."""
    code = (
        "import sys; from bench.records.environment import read_environment; read_environment();"
        "print([name for name in ('torch', 'pandas', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_package_inside_another_repository_is_not_that_repository(tmp_path: Path) -> None:
    """The commit is the suite's own, or none."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)  # noqa: S607 - git is on the path
    inside = tmp_path / "venv" / "site-packages"
    inside.mkdir(parents=True)
    assert source_state(inside) == {"commit": None, "dirty": None}


@pytest.mark.parametrize(
    ("own", "folder"), [("0::/a/b\n", ""), ("4:memory:/a/b\n", "memory"), ("5:cpu,memory:/a/b\n", "memory")]
)
def test_control_groups_are_read_from_the_own_one_up_to_the_root(
    tmp_path: Path, own: str, folder: str
) -> None:
    """Both versions' paths are followed, groups without the file are skipped, the root is the last."""
    mount = tmp_path / "cgroup" / folder
    (mount / "a" / "b").mkdir(parents=True)
    (mount / "a" / "b" / "memory.max").write_text("7\n")
    (mount / "memory.max").write_text("max\n")
    (tmp_path / "memory.max").write_text("outside\n")
    own_file = tmp_path / "own"
    own_file.write_text(own)
    texts = control_group_files("memory", "memory.max", root=tmp_path / "cgroup", own=own_file)
    assert texts == ["7", "max"]
