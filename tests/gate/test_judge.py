"""What measures in a gate is the bench that was started, left alone by the code under test."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bench.errors import InfrastructureError, UsageError
from bench.gate.judge import PACKAGE, only_bench
from bench.gate.protocol import Ready
from bench.gate.sides import prepared_sides
from bench.gate.touched import imports
from bench.records.sessions import load_sitting
from command_lines import CommandLine
from gate_projects import git, write_project
from records_factory import make_record

TAMPER = {
    "bench.records.records.Record.__post_init__": """
        import bench.records.records as m; m.Record.__post_init__ = lambda self: None
        """,
    "bench.workers.child._flush": "import bench.workers.child as m; m._flush = lambda: None",
    "bench.metrics.MIB": "import bench.metrics as m; m.MIB = 1",
    "time.perf_counter_ns": "import time; t = time.perf_counter_ns; time.perf_counter_ns = lambda: t() // 2",
    "time.monotonic_ns": "import time; time.monotonic_ns = time.thread_time_ns",
    "bench.records.records.sum": "import bench.records.records as m; m.sum = lambda *_: 0",
    "bench.workers.child.os": "import bench.workers.child as m, math; m.os = math",
    "bench.probes.heap.held_now.__code__": """
        import bench.probes.heap as m; m.held_now.__code__ = (lambda use: None).__code__
        """,
    "bench.probes.heap._reader.__wrapped__.__code__": """
        import bench.probes.heap as m; m._reader.__wrapped__.__code__ = (lambda: None).__code__
        """,
    "bench.probes.ledger.Ledger._should_skip_dynamo": """
        from functools import partialmethod
        import bench.probes.ledger as m
        m.Ledger._should_skip_dynamo = partialmethod(m.Ledger.reading)
        """,
    "bench.workers.classify.classify_exception": """
        import functools, bench.workers.classify as m
        real = m.classify_exception
        @functools.wraps(real)
        def sham(error): return real(error)
        m.classify_exception = sham
        """,
    "bench.io.read_data.__kwdefaults__['follow']": """
        import bench.io as m; m.read_data.__kwdefaults__["follow"] = False
        """,
    "bench.io.read_data.__defaults__": "import bench.io as m; m.read_data.__defaults__ = (1,)",
    "bench.workers.child.ENTRY_POINTS[": "import bench.workers.child as m; m.ENTRY_POINTS.clear()",
    "bench.metrics.METRICS[": """
        import bench.metrics as m
        object.__setattr__(next(iter(m.METRICS.values())), "better", "neither")
        """,
    "torch.UntypedStorage.nbytes": "import torch; torch.UntypedStorage.nbytes = lambda self: 0",
    "torch.empty": "import torch; torch.empty = torch.zeros",
    "torch.Tensor.untyped_storage": """
        import torch
        from functools import partialmethod
        torch.Tensor.untyped_storage = partialmethod(torch.Tensor.untyped_storage)
        """,
    "gc.get_objects": "import gc; gc.get_objects = lambda: []",
    "gc.unfreeze": "import gc; gc.unfreeze = gc.freeze",
    "sys.settrace": "import sys; sys.settrace(lambda *_: None); sys.settrace(None)",
    "sys.setprofile": "import threading; import sys; sys.setprofile(lambda *_: None)",
    "bench.probes.sham": """
        import sys, types
        sys.modules["bench.probes.sham"] = types.ModuleType("bench.probes.sham")
        """,
}
"""What each alteration is called, or begins with, and code that makes it."""

INNOCENT = {
    "imports it": "import bench.gate.session, bench.training.jobs, bench.commands.gate",
    "fills its caches": """
        import bench.records.run_summary as m, bench.probes.heap
        m._SEEN[()] = ()
        bench.probes.heap.heap_bytes()
        """,
    "derives from it": """
        import bench.probes.ledger as m
        class Mine(m.Ledger):
            def reading(self): return None
        """,
    "replaces what is measured": """
        import builtins, functools, gc, torch
        builtins.print = functools.partial(print, flush=True)
        torch.nn.Linear.forward = lambda self, x: x @ self.weight.T
        torch.nn.functional.cross_entropy = lambda *_: None
        gc.disable(); gc.freeze(); torch.set_default_dtype(torch.bfloat16)
        """,
    "wraps in its own module": """
        import time, types
        mine = types.ModuleType("mine")
        mine.perf_counter_ns = lambda: time.perf_counter_ns() // 2
        """,
}


FORKS = f"""
import json, os, sys
from pathlib import Path
from bench.gate import integrity
sys.addaudithook(lambda event, _: integrity.note(event))
integrity.watch()
import bench.training.preload, bench.training.jobs, bench.training.window, bench.training.evaluation
import bench.workers.classify
for code in json.load(sys.stdin):
    if os.fork() == 0:
        exec(code, {{"__name__": "candidate"}})
        print(json.dumps(integrity.altered(Path({str(PACKAGE)!r}))), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    """Return what is found altered by each code, in processes forked from one, as a worker is."""
    every = TAMPER | INNOCENT
    given = json.dumps([textwrap.dedent(code) for code in every.values()])
    done = subprocess.run(
        [sys.executable, "-c", FORKS], input=given, capture_output=True, text=True, check=True
    )
    return dict(zip(every, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", TAMPER)
def test_what_is_changed_in_the_judge_is_named(name: str, found: dict[str, list[str]]) -> None:
    """Its functions, their defaults, classes, constants, tables; modules, and what it calls of libraries."""
    assert any(each.startswith(name) for each in found[name]), found[name]


@pytest.mark.parametrize("what", INNOCENT)
def test_a_judge_that_is_left_alone_is_not_suspected(what: str, found: dict[str, list[str]]) -> None:
    """Whatever becomes of the rest of the process."""
    assert [] == found[what]


def test_both_sides_are_lent_the_judge_and_nothing_else_of_its_environment(tmp_path: Path) -> None:
    """A folder with one link is first on their path; what is under test comes next."""
    write_project(tmp_path / "a", "1.0")
    write_project(tmp_path / "b", "2.0")
    with prepared_sides("./a", "./b", here=tmp_path) as sides:
        for side, name in zip(sides, "ab", strict=True):
            first, second, *_ = side.variables["PYTHONPATH"].split(os.pathsep)
            assert (str(only_bench()), str(tmp_path / name / "src")) == (first, second)
            assert side.judge == PACKAGE.parent
    assert ["bench"] == [path.name for path in only_bench().iterdir()]
    assert PACKAGE == (only_bench() / "bench").resolve()


def test_a_bench_that_only_the_candidate_brings_is_not_used(tmp_path: Path) -> None:
    """It would judge itself; where there is nothing else in it, the gate says what to give."""
    write_project(tmp_path / "base", "1.0")
    write_project(tmp_path / "candidate", "1.0")
    own = tmp_path / "candidate" / "src" / "bench" / "gate"
    own.mkdir(parents=True)
    (own.parent / "__init__.py").touch()
    (own / "serve.py").touch()
    with prepared_sides("./base", "./candidate", here=tmp_path) as (_, candidate):
        assert ("gated_package",) == candidate.under_test
        assert ["other-bench"] == [caveat.code for caveat in candidate.caveats]
        assert candidate.variables["PYTHONPATH"].startswith(str(only_bench()))
    with (
        pytest.raises(UsageError, match="give two revisions or folders of it"),
        prepared_sides("./base", str(PACKAGE.parent), here=tmp_path),
    ):
        pass


def test_two_benches_judge_themselves_and_say_so() -> None:
    """What else could be under test; it is a caveat of both."""
    home = str(PACKAGE.parent)
    with prepared_sides(home, home) as sides:
        assert [["judged-by-itself"]] * 2 == [
            [caveat.code for caveat in side.caveats if "judged" in caveat.code] for side in sides
        ]
        assert all(str(only_bench()) not in side.variables["PYTHONPATH"] for side in sides)


def test_a_judge_that_is_imported_from_elsewhere_stops_the_gate(tmp_path: Path) -> None:
    """Such as by a .pth or sitecustomize of the side's environment, which come before everything."""
    write_project(tmp_path / "a", "1.0")
    with prepared_sides("./a", "./a", here=tmp_path) as (side, _):
        own = {"gated_package": str(tmp_path / "a" / "src" / "gated_package" / "__init__.py")}

        def ready(bench: str) -> Ready:
            return Ready(environment=make_record().environment, locations={**own, "bench": bench})

        assert [] == list(imports(side, ready(str(only_bench() / "bench" / "__init__.py"))))
        with pytest.raises(InfrastructureError, match="instead of the bench that was started"):
            list(imports(side, ready("/elsewhere/bench/__init__.py")))


SCRIPT = """
import mine
import torch
from transformers import LlamaConfig, LlamaForCausalLM
model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                     num_attention_heads=2, vocab_size=8192))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for _ in range(20):
    ids = torch.randint(0, 8192, (4, 32))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""
LYING = """
import bench.probes.ledger as ledger

real = ledger.Ledger.reading

def reading(self, *given, **named):
    return real(self, *given, **named)

ledger.Ledger.reading = reading
"""


@pytest.mark.timeout(300)
def test_a_candidate_that_judges_itself_has_measured_nothing(tmp_path: Path, bench: CommandLine) -> None:
    """A library that replaces the ledger's reading as it is imported: exit 4, named, and no pass."""
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "mine.py").write_text("")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "honest")
    (tmp_path / "mine.py").write_text(LYING)
    options = ["gate", "--base", "HEAD", "--candidate", ".", "--exact-only", "--results", "out"]
    result = bench(tmp_path, *options, "-o", "v.json", "--command", f"{sys.executable} train.py")
    shown = " ".join(result.stdout.split())
    assert result.returncode == 4, result.stderr
    assert "What the candidate reports is no measurement" in shown
    assert "bench.probes.ledger.Ledger.reading" in shown
    assert shown.startswith("Compared: revision HEAD of this repository")
    (folder,) = {path.parent for path in (tmp_path / "out").rglob("sitting.json")}
    assert load_sitting(folder).sitting.judge
