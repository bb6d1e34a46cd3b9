"""What measures in a gate is the bench that was started, left alone by the code under test."""

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
from gate_projects import git, write_project
from records_factory import make_record

TAMPER = {
    "a method of the ledger": "import bench.records.records as m; m.Record.replace = lambda self: self",
    "a function in the module that uses it": "import bench.workers.child as m; m._flush = lambda: None",
    "a constant": "import bench.metrics as m; m.MIB = 1",
    "a clock": "import time; t = time.perf_counter_ns; time.perf_counter_ns = lambda: t() // 2",
    "a clock of another kind": "import time; time.perf_counter_ns = time.thread_time_ns",
    "a builtin": "import bench.records.records as m; m.sum = lambda *_: 0",
    "a library": "import bench.workers.child as m, math; m.os = math",
    "a method with other arguments": """
        from functools import partialmethod
        import bench.records.records as m
        m.Record.replace = partialmethod(m.Record.replace, cell=None)
        """,
    "a wrapper that points to what it hides": """
        import functools, bench.workers.classify as m
        real = m.classify_exception
        @functools.wraps(real)
        def sham(error): return real(error)
        m.classify_exception = sham
        """,
    "a module of another place": """
        import sys, types
        sys.modules["bench.probes"] = types.ModuleType("bench.probes")
        """,
}
NAMED = {
    "a method of the ledger": "bench.records.records",
    "a function in the module that uses it": "bench.workers.child._flush",
    "a constant": "bench.metrics.MIB",
    "a clock": "time.perf_counter_ns",
    "a clock of another kind": "time.perf_counter_ns",
    "a builtin": "bench.records.records.sum",
    "a library": "bench.workers.child.os",
    "a method with other arguments": "bench.records.records",
    "a wrapper that points to what it hides": "bench.workers.classify.classify_exception",
    "a module of another place": "bench.probes (from nowhere)",
}


def altered(code: str) -> str:
    """Return what is found altered in a process that has run some code."""
    lines = (
        "import bench.workers.child, bench.records.records, bench.workers.classify",
        textwrap.dedent(code),
        "from pathlib import Path",
        "from bench.gate.integrity import altered",
        f"print(altered(Path({str(PACKAGE)!r})))",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("what", TAMPER)
def test_what_is_replaced_in_the_judge_is_named(what: str) -> None:
    """By accident or to please: methods, names in other modules, constants, clocks, wrappers, modules."""
    assert NAMED[what] in altered(TAMPER[what])


def test_a_judge_that_is_left_alone_is_not_suspected() -> None:
    """Nor for the decorators that it uses itself."""
    assert altered("import bench.gate.session, bench.training.jobs, bench.commands.gate") == "()"


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
def test_a_candidate_that_judges_itself_has_measured_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that replaces the ledger's reading as it is imported: exit 4, named, and no pass."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path.with_suffix(".cache")))
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "mine.py").write_text("")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "honest")
    (tmp_path / "mine.py").write_text(LYING)
    options = ["gate", "--base", "HEAD", "--candidate", ".", "--exact-only", "--results", "out"]
    program = [
        sys.executable,
        "-m",
        "bench",
        *options,
        "-o",
        "v.json",
        "--command",
        f"{sys.executable} train.py",
    ]
    result = subprocess.run(program, capture_output=True, text=True, check=False)
    shown = " ".join(result.stdout.split())
    assert result.returncode == 4, result.stderr
    assert "What the candidate reports is no measurement" in shown
    assert "bench.probes.ledger.Ledger.reading" in shown
    assert shown.startswith("Compared: revision HEAD of this repository")
    (folder,) = {path.parent for path in (tmp_path / "out").rglob("sitting.json")}
    assert load_sitting(folder).sitting.judge
