"""Virtual GPUs: the fake NVML library, built with gcc, and the state it tells of.

The real pynvml loads it in a process of its own, since the loader reads LD_LIBRARY_PATH at a process's start.
"""

import atexit
import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

MIB = 1024**2
GIB = 1024**3
SOURCE = Path(__file__).parent / "fake_nvml" / "fake_nvml.c"
SONAME = "libnvidia-ml.so.1"
Shares = Mapping[int, int | None] | Sequence[tuple[int, int | None]]
Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class VirtualSlice:
    """A MIG slice; ``compute`` and ``graphics`` pair process numbers with bytes, None for N/A."""

    uuid: str = "MIG-00000000-0000-4000-8000-00000000a000"
    name: str = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    total_bytes: int | None = 10 * GIB
    reserved_bytes: int = 16 * MIB
    used_bytes: int | None = 0
    compute: Shares = field(default_factory=dict)
    graphics: Shares = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class VirtualCard:
    """A card; by default an idle H100 that is not cut into slices. None for a reading is N/A.

    ``refuses_with`` is the nvmlReturn_t with which the driver refuses a handle of it.
    """

    uuid: str = "GPU-00000000-0000-4000-8000-000000000000"
    name: str = "NVIDIA H100 80GB HBM3"
    total_bytes: int | None = 80 * GIB
    reserved_bytes: int = 512 * MIB
    used_bytes: int | None = 0
    compute: Shares = field(default_factory=dict)
    graphics: Shares = field(default_factory=dict)
    utilisation_percent: int | None = 0
    power_mw: int | None = 70_000
    power_limit_mw: int | None = 700_000
    energy_mj: int | None = 1_000_000
    sm_clock_mhz: int | None = 1_980
    temperature_c: int | None = 35
    event_reasons: int | None = 1
    mig_mode: bool | None = False
    refuses_with: int = 0
    slices: tuple[VirtualSlice, ...] = ()


class VirtualGpus:
    """A folder with the fake library and its state; nothing is there until ``write``."""

    def __init__(self, folder: Path, *, without: Sequence[str] = ()) -> None:
        """Take a folder of one's own and the functions that an older driver lacks; skip without gcc."""
        self.folder = folder
        self._state = folder / "state.txt"
        self.library = folder / SONAME
        self.library.symlink_to(build(tuple(without)))

    def write(
        self,
        *cards: VirtualCard,
        fail: Mapping[str, int] | None = None,
        delay_us: Mapping[str, int] | None = None,
        driver_version: str = "575.57.08",
        calls: Path | None = None,
    ) -> None:
        """Replace all that the library tells, at once, also in processes that run.

        ``fail`` gives nvmlReturn_t codes and ``delay_us`` waits by function, "*" standing for every other; to
        ``calls`` the name of each function is added that is called.
        """
        lines: dict[str, object] = {"driver_version": driver_version, "cuda_version": 12090}
        lines |= {"cards": len(cards)} | ({"calls": calls} if calls else {})
        for number, card in enumerate(cards):
            lines |= _fields(f"card.{number}", card)
            for place, part in enumerate(card.slices):
                lines |= _fields(f"card.{number}.slice.{place}", part)
        lines |= {f"fail.{name}": code for name, code in (fail or {}).items()}
        lines |= {f"delay_us.{name}": delay for name, delay in (delay_us or {}).items()}
        text = "".join(f"{key} = {value}\n" for key, value in lines.items())
        with tempfile.NamedTemporaryFile("w", dir=self.folder, delete=False) as file:
            file.write(text)
        # The library knows a file it has read by its time; the clock of the file system ticks too slowly.
        os.utime(file.name, ns=(time.time_ns(), time.time_ns()))
        Path(file.name).replace(self._state)

    def environment(self) -> dict[str, str]:
        """Return the variables with which a process finds the library and its state."""
        others = os.environ.get("LD_LIBRARY_PATH")
        return {
            "LD_LIBRARY_PATH": os.pathsep.join([str(self.folder), *([others] if others else [])]),
            "FAKE_NVML_STATE": str(self._state),
        }

    @contextlib.contextmanager
    def box(self) -> Iterator["Box"]:
        """Start a process in which these GPUs are there, to call functions in."""
        context = get_context("spawn")  # a new program, so that the loader reads its variables anew
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            with pytest.MonkeyPatch.context() as patch:
                for name, value in self.environment().items():
                    patch.setenv(name, value)
                pool.submit(os.getpid).result(timeout=60)  # starts the process
            yield Box(pool)


class Box:
    """A process that lives in a virtual box; one call at a time."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def call(
        self, function: Callable[Parameters, Answer], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Answer:
        """Return what a function of a module returns in the box, or raise what it raises there."""
        return self._pool.submit(function, *args, **kwargs).result(timeout=60)


def _fields(prefix: str, device: VirtualCard | VirtualSlice) -> dict[str, object]:
    """Return the lines of one device; an attribute that the driver does not have at all is left out."""
    lines: dict[str, object] = {}
    for name, value in vars(device).items():
        match name, value:
            case "slices", _:
                lines[f"{prefix}.slices"] = len(value)
            case "mig_mode", _:
                lines[f"{prefix}.mig_mode"] = "na" if value is None else int(value)
            case (("compute" | "graphics"), _):
                pairs = value.items() if isinstance(value, Mapping) else value
                shares = (f"{pid}:{'na' if used is None else used}" for pid, used in pairs)
                lines[f"{prefix}.{name}"] = " ".join(shares)
            case _:
                lines[f"{prefix}.{name}"] = "na" if value is None else value
    return lines


@functools.cache
def build(without: tuple[str, ...] = ()) -> Path:
    """Compile the library, less some functions, once per test process; skip the test without gcc."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("needs gcc to build the fake NVML library; install it to run this test")
    folder = Path(tempfile.mkdtemp(prefix="fake-nvml-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    script = folder / "version.map"
    hidden = f"local: {' '.join(f'{name};' for name in without)}" if without else ""
    script.write_text(f"{{ global: nvml*; {hidden} }};\n")
    library = folder / SONAME
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    linker = f"-Wl,-soname,{SONAME},--version-script={script}"
    subprocess.run([gcc, *options, linker, "-o", str(library), str(SOURCE)], check=True)
    return library
