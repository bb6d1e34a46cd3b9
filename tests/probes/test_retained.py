"""What is alive beside a step's own tensors: counted, named by its holder, and apart from leaks."""

import ctypes
import functools
import gc
import multiprocessing
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from bench.metrics import MIB
from bench.probes.heap import heap_bytes
from bench.probes.ledger import Ledger
from bench.probes.tensors import SOMEWHERE
from bench.records.messages import Job, ProbeJob, Send
from bench.records.readings import Retained
from bench.workers.launch import Launcher
from bench.workers.supervise import RunningJob

KEPT: list[torch.Tensor] = []


@pytest.fixture(scope="module", autouse=True)
def _all_else_frozen() -> None:
    """Leave what other tests keep out of what each ledger here looks through, as a server's imports are."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    """Let go of what a test has kept."""
    yield
    KEPT.clear()


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return a variable of a module that is not frozen: of those its name is known."""
    module = types.ModuleType("fresh")
    monkeypatch.setitem(sys.modules, "fresh", module)
    module.__dict__["KEPT"] = kept = list[torch.Tensor]()
    return kept


def _retained(step: Callable[[int], object] = lambda _: None, model: nn.Module | None = None) -> Retained:
    """Run three steps under a ledger, and return what it says beside its peak."""
    model = model or nn.Identity()
    ledger = Ledger(model, "cpu", vocabulary_size=-1)
    ledger.register_model(model)
    with ledger:
        for number in range(3):
            step(number)
            ledger.end_step()
    retained = ledger.reading().retained
    assert not isinstance(retained, msgspec.UnsetType)
    return retained


def _class_of_holders() -> Any:
    class Holder:
        """Keeps a tensor as its class does, or as one of its objects."""

        shared: Any = None

        def __init__(self, own: object) -> None:
            self.own = own

    return Holder


def _in_a_closure(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: tensor


def _larger_than_all() -> int:
    """Return a size above that of each tensor alive: the largest are named, and other tests keep some."""
    alive = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return MIB + max((tensor.nbytes for tensor in alive if tensor.device.type == "cpu"), default=0)


def test_each_holder_is_named_with_its_bytes(kept: list[torch.Tensor]) -> None:
    """A variable of a module, a class, an object and a closure; the model's own are not among them."""
    before = _retained()
    size = _larger_than_all()
    kept.append(torch.ones(size, dtype=torch.uint8))
    holders = _class_of_holders()
    holders.shared = torch.ones(2 * size, dtype=torch.uint8)
    holder = holders({"deep": [torch.ones(3 * size, dtype=torch.uint8)]})  # within others
    function = _in_a_closure(torch.ones(4 * size, dtype=torch.uint8))
    model = nn.Linear(1024, 1024)
    found = _retained(model=model).by_holder_bytes
    del holders, holder, function
    own = {name: size for name, size in found.items() if name.startswith((__name__, "fresh"))}
    assert own == {
        "fresh.KEPT": size,
        f"{__name__}._class_of_holders.<locals>.Holder": 5 * size,
        f"{__name__}._in_a_closure.<locals>.<lambda>": 4 * size,
    }
    assert 10 * size == sum(found.values()) - before.total_bytes


def test_a_view_counts_with_all_of_its_storage_once() -> None:
    """Of a storage of one MiB, two views of a byte each are kept."""
    before = _retained().total_bytes
    whole = torch.ones(MIB, dtype=torch.uint8)
    KEPT.extend([whole[:1], whole[1:2]])
    del whole
    assert MIB == _retained().total_bytes - before


def test_a_gradient_that_is_kept_counts() -> None:
    """Python has never seen it: it hangs on a tensor outside the model."""
    before = _retained().total_bytes
    tensor = torch.ones(MIB // 4, requires_grad=True)
    tensor.sum().backward()
    KEPT.append(tensor)
    assert 2 * MIB == _retained().total_bytes - before


def test_batches_that_wait_are_left_out() -> None:
    """They are the window's own."""
    before = _retained().total_bytes
    waiting = torch.ones(MIB, dtype=torch.uint8)
    with (ledger := Ledger(nn.Identity(), "cpu", vocabulary_size=-1)):
        ledger.leave_out([waiting])
    retained = ledger.reading().retained
    assert not isinstance(retained, msgspec.UnsetType)
    assert before == retained.total_bytes


def test_more_than_the_largest_are_counted_without_a_name(kept: list[torch.Tensor]) -> None:
    """Naming looks through the whole process."""
    before = _retained().total_bytes
    size = _larger_than_all()
    kept.extend(torch.ones(size, dtype=torch.uint8) for _ in range(20))
    found = _retained()
    assert 20 * size == found.total_bytes - before
    assert found.by_holder_bytes[SOMEWHERE] >= 12 * size
    assert found.by_holder_bytes["fresh.KEPT"] == 8 * size


def test_what_lies_frozen_in_a_worker_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its server froze, from the server's list, and what a worker has frozen itself."""
    gc.unfreeze()
    size = _larger_than_all()
    gc.freeze()
    before = _retained().total_bytes
    KEPT.append(torch.ones(size, dtype=torch.uint8))
    gc.freeze()
    server = types.ModuleType("bench.workers.freeze")
    server.__dict__.update(TENSORS=[weakref.ref(KEPT[0])], OBJECTS=gc.get_freeze_count())
    assert before == _retained().total_bytes
    monkeypatch.setitem(sys.modules, "bench.workers.freeze", server)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: server)
    found = _retained()
    assert (size, size) == (found.total_bytes - before, found.by_holder_bytes[f"{__name__}.KEPT"])
    KEPT.append(torch.ones(size, dtype=torch.uint8))
    gc.freeze()
    assert 2 * size == _retained().by_holder_bytes[f"{__name__}.KEPT"]
    KEPT.clear()
    gc.freeze()


def _look(_: Job, _send: Send) -> None:
    assert sys.modules["bench.workers.freeze"].TENSORS


def test_a_ledger_in_a_worker_of_tests_need_not_thaw_what_its_server_froze() -> None:
    """The one server of a test session has looked for tensors though it predicts too."""
    end = RunningJob(ProbeJob(), Launcher(work=_look)).to_end()
    assert "ok" == end.outcome, end.failure


def test_what_every_step_leaves_behind_is_its_leak() -> None:
    """64 KiB a step, named by operator and place."""
    found = _retained(lambda _: KEPT.append(torch.ones(65_536, dtype=torch.uint8)))
    assert 65_536 == found.leaked_bytes_per_step
    assert {"aten::ones in outside the model": 2 * 65_536} == found.leaked_by_op_bytes


def test_what_holds_leaked_tensors_is_named(kept: list[torch.Tensor]) -> None:
    """A module's variable by its module; nothing where no step left anything."""
    found = _retained(lambda _: kept.append(torch.ones(65_536, dtype=torch.uint8)))
    assert "fresh.KEPT" == found.leaked_holder
    assert msgspec.UNSET is _retained().leaked_holder


def test_a_graph_that_is_kept_leaks_what_only_it_holds() -> None:
    """A sum of losses that were not detached: the classic."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
    rows = torch.ones(256, 64)
    losses = list[torch.Tensor]()
    found = _retained(lambda _: losses.append(model(rows).sum()), model=model)
    assert 256 * 64 * 4 + 4 == found.leaked_bytes_per_step
    here = f"{__name__}.test_a_graph_that_is_kept_leaks_what_only_it_holds"
    assert f"{here}.<locals>.losses" == found.leaked_holder


def _replaced(number: int) -> None:
    KEPT[:] = [torch.ones(MIB * (number + 1), dtype=torch.uint8)]


def test_what_a_step_replaces_is_no_leak() -> None:
    """Not even where the next one is larger."""
    assert 0 == _retained(_replaced).leaked_bytes_per_step


def test_a_queue_of_fixed_length_is_no_leak() -> None:
    """Each step's value outlives the ledger, and an older one is let go for it."""
    queue = deque((torch.ones(MIB, dtype=torch.uint8) for _ in range(10)), maxlen=10)
    found = _retained(lambda _: queue.append(torch.ones(MIB, dtype=torch.uint8)))
    assert 0 == found.leaked_bytes_per_step


def test_what_only_the_last_step_made_is_no_leak() -> None:
    """Growth that comes once has lived through no other step."""
    found = _retained(lambda number: KEPT.append(torch.ones(MIB)) if number == 2 else None)
    assert 0 == found.leaked_bytes_per_step


def test_the_heap_has_what_only_cpp_holds() -> None:
    """A graph's saved result, of which Python keeps the sum alone; within a page."""
    rows = torch.ones(MIB // 4, requires_grad=True)
    before = heap_bytes()
    if before is None:
        pytest.skip("no glibc 2.33")
    KEPT.append(rows.exp().sum())
    after = heap_bytes()
    assert after is not None
    assert abs(after - before - MIB) < 16_384


WAYS = {
    "a module": "setattr(sys, 'kept', block())",
    "an attribute of a function": "setattr(print_kept := lambda: None, 'kept', block())",
    "a default argument": "lambda kept=block(): kept",
    "a thread's own": "local := threading.local(), setattr(local, 'kept', block())",
    "a cache": "functools.cache(block)()",
    "a generator that waits": "next(waits := (each for each in [block(), 1]))",
    "a cycle": "ring := [block()], ring.append(ring)",
    "a storage": "block().untyped_storage()",
    "a view": "block()[:1]",
    "an array": "np.ones(MIB, dtype='uint8')",
    "an array of a tensor": "block().numpy()",
    "a buffer": "bytearray(MIB)",
    "a buffer of C": "(ctypes.c_char * MIB)()",
    "a registry of torch": "torch.nn.Parameter(block().float()[: MIB // 4].clone())",
    "freed and taken again, larger": "[(block(), None)[1], torch.ones(2 * MIB, dtype=torch.uint8)]",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_mebibyte_is_seen_wherever_it_is_kept(way: str) -> None:
    """The ledger or the heap has it; once it is let go it is in neither."""
    names = {"MIB": MIB, "torch": torch, "np": np, "ctypes": ctypes, "functools": functools}
    space: dict[str, Any] = {**names, "sys": types.SimpleNamespace(), "threading": threading}
    space["block"] = lambda: torch.ones(MIB, dtype=torch.uint8)
    gc.collect()
    before = heap_bytes()
    if before is None:
        pytest.skip("no glibc 2.33")
    exec(f"kept = [{WAYS[way]}]", space)  # noqa: S102 - one of those above
    kept = heap_bytes()
    space.clear()
    gc.collect()
    after = heap_bytes()
    assert kept is not None
    assert after is not None
    assert (True, True) == (kept - before >= MIB, after - before < MIB // 4)
