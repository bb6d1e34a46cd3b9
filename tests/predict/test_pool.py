"""Predictions in worker processes: order, several platforms, a worker that dies, limits, interruption."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from bench.errors import InfrastructureError, UsageError
from bench.metrics import GIB, MIB
from bench.predict import pool
from bench.predict.kept import Kept
from bench.predict.pool import PredictionRequest, card_of_device, platform_of, predict_cells
from bench.records.predictions import Prediction, Refusal
from bench.scenario.catalogue import card
from bench.scenario.platform import Platform
from bench.scenario.types import LimitsSpec
from bench.training.preload import when_called
from bench.workers.launch import Launcher, Worker
from replay_worker import make_cell, make_facts, replay

AMPERE, HOPPER = Platform(capability=(8, 0)), Platform(capability=(9, 0))


@pytest.fixture
def launcher() -> Launcher:
    """Return a launcher of replay workers, without anything imported beforehand."""
    return Launcher(work=replay, preload=["bench.workers.child"])


def request(behaviour: str, batch: int = 1, platform: Platform = AMPERE) -> PredictionRequest:
    """Return the request for a replay cell: a GiB for each sequence of its batch."""
    training = {"sequence_length": 256, "micro_batch": batch}
    return PredictionRequest(cell=make_cell(behaviour, training=training), platform=platform)


def sizes(answers: list[Prediction | Refusal]) -> list[int | str]:
    """Return the predicted GiB, or the refusal."""
    return [
        one.allocated_peak_bytes // GIB if isinstance(one, Prediction) else one.message for one in answers
    ]


def test_answers_come_in_the_order_of_the_requests_each_on_its_platform(launcher: Launcher) -> None:
    """Whatever worker answers when; ids may repeat; a refusal is an answer."""
    heard: list[tuple[int, int]] = []
    requests = [
        request("ok", 3),
        request("refused"),
        request("ok", 1, HOPPER),
        request("ok", 2),
        request("ok", 3, HOPPER),
    ]
    answers = predict_cells(requests, launcher, progress=lambda done, total: heard.append((done, total)))
    assert sizes(answers) == [3, "aten::nonzero depends on data.", 1, 2, 3]
    platforms = [one.platform for one in answers if isinstance(one, Prediction)]
    assert platforms == [AMPERE, HOPPER, AMPERE, HOPPER]
    assert heard[-1] == (5, 5)


def test_a_worker_that_dies_costs_the_cell_to_blame_and_no_other(launcher: Launcher) -> None:
    """Its batch is halved until that cell is alone."""
    behaviours = ["ok", "ok-2", "sigkill", "ok-3", "slow", "exception"]
    answers = predict_cells([request(name) for name in behaviours], launcher)
    refused = [name for name, one in zip(behaviours, answers, strict=True) if isinstance(one, Refusal)]
    assert refused == ["sigkill"]
    assert str(sizes(answers)[2]).startswith(
        "The predictor failed on this cell: The worker was ended by SIGKILL"
    )


def test_a_library_that_cannot_be_imported_ends_the_plan_at_once(launcher: Launcher) -> None:
    """It would refuse every cell, each by itself."""
    with pytest.raises(InfrastructureError, match=r"^a library cannot be imported here; install it\.$"):
        predict_cells([request("unavailable", batch) for batch in (1, 2, 3)], launcher)


def test_what_takes_too_long_is_refused_and_the_rest_kept(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit ends the worker; what it had answered stays."""
    monkeypatch.setattr(pool, "cores", lambda: 1)
    limits = LimitsSpec(timeout_s=1.5, heartbeat_timeout_s=30, host_memory_gib=None)
    answers = predict_cells([request("ok", 4), request("hang")], launcher, limits=limits)
    assert sizes(answers) in (
        [4, "Predicting took longer than 1.5 s and was ended."],
        ["Predicting took longer than 1.5 s and was ended."] * 2,  # had it been asked the other way round
    )


def test_an_interrupt_ends_every_worker(launcher: Launcher) -> None:
    """Ctrl-C does not wait for the plan's end, and nothing is left running."""
    workers: list[Worker] = []

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    started = launcher.start

    def start(*arguments: object, **named: object) -> Sequence[Worker]:
        begun = started(*arguments, **named)  # type: ignore[arg-type] # passed on as they come
        workers.extend(begun)
        return begun

    launcher.start = start  # type: ignore[method-assign] # to see what is started
    with pytest.raises(KeyboardInterrupt):
        predict_cells([request("hang"), request("ok")], launcher, progress=interrupt)
    assert workers
    for worker in workers:
        with pytest.raises(ValueError, match="process object is closed"):
            worker._process.is_alive()


def test_cells_that_share_work_go_to_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are runs of like cells, of one platform each."""
    monkeypatch.setattr(pool, "cores", lambda: 2)
    cells = [
        make_cell("x", method={"kind": kind}, training={"sequence_length": 256, "micro_batch": batch})
        for batch in (1, 2)
        for kind in ("full", "lora")
    ]
    requests = [PredictionRequest(cell=cell, platform=AMPERE) for cell in cells]
    batches = pool._batches(requests, 2)
    assert [sorted(batch) for batch in batches] == [[0, 2], [1, 3]]


def test_the_platform_is_what_is_installed_or_what_is_asked_for() -> None:
    """Local labels of a version are left out; nonsense is refused."""
    assert platform_of("cuda", (9, 0), "2.6").torch == "2.6"
    assert "+" not in platform_of("cpu").torch
    with pytest.raises(UsageError, match="is no version of torch"):
        platform_of("cuda", torch_version="newest")


def test_the_device_of_this_machine_is_a_card() -> None:
    """Its memory is what torch reports; the size of its context is said to be assumed."""
    assert card_of_device(make_facts()) is None
    own = card_of_device(make_facts(cuda_name="NVIDIA L4", cuda_total_bytes=22 * GIB, cuda_capability=(8, 9)))
    assert own is not None
    assert (own.title, own.usable_bytes, own.capability) == ("NVIDIA L4", 22 * GIB, (8, 9))
    assert own.assumptions == ("the size of its CUDA context is assumed",)


def test_the_device_of_this_machine_is_as_fast_as_its_catalogued_card() -> None:
    """Memory is still what torch reports; of a card that is in no catalogue no speed is known."""
    facts = {"cuda_name": "NVIDIA H200", "cuda_total_bytes": 143156 * MIB, "cuda_capability": (9, 0)}
    own, known = card_of_device(make_facts(**facts)), card("h200")
    assert own is not None
    assert (own.name, own.speed, own.bandwidth_bytes_per_s) == (known.name, known.speed, 4800e9)
    assert own.usable_bytes == 143156 * MIB
    other = card_of_device(make_facts(**facts | {"cuda_name": "NVIDIA H100 NVL"}))
    assert other is not None
    assert (other.name, other.speed) == ("this-device", None)


@pytest.mark.parametrize("version", ["1.0", "2.14", "99.0"])
def test_a_version_of_torch_with_unknown_kernels_is_refused(version: str) -> None:
    """A table for kernels that nobody has looked at would be a guess."""
    with pytest.raises(UsageError, match=r"are not known here; give a version from 2\.1 to 2\.13"):
        platform_of("cuda", torch_version=version)


def test_what_workers_import_beforehand_is_there() -> None:
    """The server that forks them passes over a module that it does not find, and each worker would pay."""
    assert [name for name in pool.PRELOAD if find_spec(name) is None] == []


def test_a_prediction_imports_nothing_that_only_other_work_needs() -> None:
    """Data sets, tables and the trainer take longer to import than a cell to predict."""
    code = (
        "import sys\n"
        "import bench.predict.preload\n"
        "from bench.predict.trace.patches import patched\n"
        "from bench.scenario.platform import Platform\n"
        "with patched(Platform()): pass\n"
        "unneeded = 'datasets pandas pyarrow scipy.linalg scipy.optimize transformers.trainer trl'.split()\n"
        "unneeded += 'networkx torch._inductor.codecache'.split()\n"
        "print(sorted(sys.modules.keys() & unneeded), 'bitsandbytes' in sys.modules)"
    )
    assert _printed(code) == "[] True\n"


def test_what_bitsandbytes_marks_to_be_compiled_is_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and with the options that it named; others compile as ever."""
    assert torch.compile.__module__ == "torch"
    compiled: list[dict[str, bool]] = []

    def compile_noted(function: Callable[[int], int], **options: bool) -> Callable[[int], int]:
        compiled.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile_noted)
    twice = when_called(dynamic=False)(lambda one: 2 * one)
    assert [] == compiled
    assert (2, 4) == (twice(1), twice(2))
    assert [{"dynamic": False}] == compiled


def test_the_models_of_transformers_are_read_once() -> None:
    """It has a list of 128 folders that it read, and reads all of its five hundred again."""
    code = (
        "import sys, bench.training\n"
        "read = []\n"
        "def hear(event, told):\n"
        "    if event == 'open' and '/transformers/models/' in str(told[0]) and str(told[0])[-3:] == '.py':\n"
        "        read.append(told[0])\n"
        "sys.addaudithook(hear)\n"
        "import bench.training.preload, transformers\n"
        "structure = transformers.models._import_structure\n"
        "print(len(read) > 1000, len(read) == len(set(read)), 'LlamaModel' in str(structure.values()))"
    )
    assert _printed(code) == "True True True\n"


def _printed(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout


@pytest.mark.parametrize("kept", [False, True])
def test_the_replay_is_compiled_beside_the_imports(*, kept: bool, tmp_path: Path) -> None:
    """Another process compiles what no process did before; the server reads it, so that no worker has to."""
    code = (
        "import importlib, os\n"
        "from pathlib import Path\n"
        "from bench.predict.allocator import compiled, replay\n"
        "importlib.import_module = lambda _: None\n"  # what takes seconds
        "def replayed(*_):\n"
        f"    Path({str(tmp_path)!r}, str(os.getpid())).touch()\n"
        f"compiled.is_kept, replay.replay = lambda: {kept}, replayed\n"
        "import bench.predict.preload\n"
        "print(os.getpid())"
    )
    server = _printed(code).strip()
    processes = {file.name for file in tmp_path.iterdir()}
    assert (server in processes, len(processes)) == (True, 1 if kept else 2)


def test_the_server_starts_at_once_where_no_answer_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its imports take seconds; once there are answers it waits until one is missing."""
    prepare = Mock()
    monkeypatch.setattr(Launcher, "prepare", prepare)
    monkeypatch.setattr(Kept, "at_first", "")  # whatever other tests have changed since
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path))
    Kept().launcher()
    (tmp_path / "predictions").mkdir()
    Kept().launcher()
    assert prepare.call_count == 1
    Kept(fresh=True).launcher()
    assert prepare.call_count == 2


def test_a_compiler_that_fails_is_no_second_server(tmp_path: Path) -> None:
    """It ends, and what it met is left to a worker to say; the server goes on."""
    code = (
        "import importlib, os\n"
        "from pathlib import Path\n"
        "from bench.predict.allocator import compiled, replay\n"
        "importlib.import_module = lambda _: None\n"  # what takes seconds
        "def failing(*_):\n"
        "    raise ImportError('no room')\n"
        "compiled.is_kept, replay.replay = lambda: False, failing\n"
        "try:\n"
        "    import bench.predict.preload\n"
        "except ImportError:\n"
        "    pass\n"  # as multiprocessing's server goes on
        f"Path({str(tmp_path)!r}, str(os.getpid())).touch()\n"
    )
    _printed(code)
    assert len([*tmp_path.iterdir()]) == 1
