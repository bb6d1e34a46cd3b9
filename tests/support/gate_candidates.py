"""Copies of this project that are each worse in one known way, to try a gate on.

    python tests/support/gate_candidates.py FOLDER [REVISION]

writes a folder for each change, such as FOLDER/memory, from what is committed at the revision. Nothing in the
product switches any of it on: a few lines are added at the end of one module of each copy.
"""

import io
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is added at the end of which module."""

    module: str
    lines: str


def _slow_steps(which: str, when: str, share: float) -> Change:
    """Return steps that take longer by a share where their number is as ``when`` says."""
    return Change(
        module="bench/training/step.py",
        lines=f'''

import time

_plain_run_step = run_step
_STEPS = []


def run_step(trainer, micro_batches, mark=ignore_phase):
    """Take longer {which}."""
    started_s = time.perf_counter()
    result = _plain_run_step(trainer, micro_batches, mark)
    _STEPS.append(len(_STEPS))
    if len(_STEPS) {when}:
        time.sleep({share} * (time.perf_counter() - started_s))
    return result
''',
    )


CHANGES = {
    "memory": Change(
        module="bench/training/step.py",
        lines='''

_plain_run_step = run_step


def run_step(trainer, micro_batches, mark=ignore_phase):
    """Hold one MiB more for as long as the step takes."""
    held = torch.zeros(1024**2, dtype=torch.uint8, device=trainer.device)
    result = _plain_run_step(trainer, micro_batches, mark)
    del held
    return result
''',
    ),
    "leak": Change(
        module="bench/training/step.py",
        lines='''

_plain_run_step = run_step
_LEAKED = []


def run_step(trainer, micro_batches, mark=ignore_phase):
    """Keep 64 KiB of every step for ever."""
    result = _plain_run_step(trainer, micro_batches, mark)
    _LEAKED.append(torch.ones(65_536, dtype=torch.uint8, device=trainer.device))
    return result
''',
    ),
    "retained": Change(
        module="bench/training/methods.py",
        lines='''

import os

import numpy

_plain_adapt = adapt
_KEPT = []


class _Keeper:
    """Keeps what it is given, as a class does."""


def _in_a_closure(tensor):
    return lambda: tensor


def _saved_by_a_graph():
    """Let autograd alone hold an exponential's result."""
    return torch.ones(1024**2 // 4, requires_grad=True).exp().sum()


def adapt(model, cell):
    """Keep one MiB outside the model, in another place in each run."""
    block = torch.ones(1024**2, dtype=torch.uint8)
    match os.getpid() % 6:
        case 0:
            _KEPT.append(block)
        case 1:
            _Keeper.block = block
        case 2:
            _KEPT.append(_in_a_closure(block))
        case 3:
            _KEPT.append(_saved_by_a_graph())
        case 4:
            _KEPT.append(block.untyped_storage())
        case 5:
            _KEPT.append(numpy.ones(1024**2, dtype="uint8"))
    return _plain_adapt(model, cell)
''',
    ),
    "at_import": Change(
        module="bench/training/methods.py",
        lines='''

import mmap

_before = adapt
_AT_IMPORT = torch.frombuffer(mmap.mmap(-1, 1024**2), dtype=torch.uint8)


def _let_go(model, cell):
    """Keep nothing of what is there since the server imported it, in other cells."""
    _AT_IMPORT.set_(torch.empty(0, dtype=torch.uint8))
    return _before(model, cell)


_plain_adapt = _let_go


def adapt(model, cell):
    """Keep it."""
    return _before(model, cell)
''',
    ),
    "subtracts": Change(
        module="bench/training/window.py",
        lines='''

_plain_read_ledger = read_ledger
_plain_train = train


def train(setting, trainer, data):
    """Take 256 MiB for as long as it trains."""
    held = torch.ones(256 * 1024**2, dtype=torch.uint8)
    _plain_train(setting, trainer, data)
    del held


def read_ledger(*args, **kwargs):
    """Read a peak without it."""
    reading = _plain_read_ledger(*args, **kwargs)
    return reading.replace(retained=reading.retained.replace(by_holder_bytes={}))
''',
    ),
    "speed": Change(
        module="bench/training/step.py",
        lines='''

import time

_plain_run_step = run_step


def run_step(trainer, micro_batches, mark=ignore_phase):
    """Sleep for a tenth of what the step took."""
    started_s = time.perf_counter()
    result = _plain_run_step(trainer, micro_batches, mark)
    time.sleep(0.1 * (time.perf_counter() - started_s))
    return result
''',
    ),
    "late": _slow_steps("from the 55th step on: the last ten of a window of four and sixty", "> 54", 0.7),
    "periodic": _slow_steps("in every tenth step", "% 10 == 0", 1.1),
    "learning_rate": Change(
        module="bench/training/step.py",
        lines='''

_plain_build_schedule = build_schedule


def build_schedule(optimizer, training, steps):
    """Train with a hundredth of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] /= 100
    return _plain_build_schedule(optimizer, training, steps)
''',
    ),
    "own_ledger": Change(
        module="bench/probes/ledger.py",
        lines='''

_TAKEN = torch.ones(256 * 1024**2, dtype=torch.uint8)
_plain_reading = Ledger.reading


def _reading(self):
    """Leave out of the books what was taken above."""
    told = _plain_reading(self)
    counted = any(block.nbytes == _TAKEN.nbytes for block in self.blocks)
    return told.replace(peak_bytes=told.peak_bytes - counted * _TAKEN.nbytes)


Ledger.reading = _reading
''',
    ),
    "crash": Change(
        module="bench/training/step.py",
        lines='''

import os
import signal

_plain_run_step = run_step
_STEPS = []


def run_step(trainer, micro_batches, mark=ignore_phase):
    """End half way, as by the kernel's killer."""
    _STEPS.append(len(_STEPS))
    if len(_STEPS) > 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return _plain_run_step(trainer, micro_batches, mark)
''',
    ),
    "output": Change(
        module="bench/training/step.py",
        lines="""

import os

_LINES = b"all is well \\n" * 80_000
for _ in range(1100):  # a gigabyte in all
    os.write(1, _LINES[: 1024**2])
""",
    ),
    "unloaded": Change(
        module="bench/claims/rules.py",
        lines="""

import time

time.sleep(5)
_TAKEN = bytearray(1_200_000_000)
""",
    ),
}


BY_SEED = """

_changed_{name}_{function} = {function}


def {function}(*given, **named):
    \"\"\"Be changed in the cell of one seed alone.\"\"\"
    trainings = (getattr(getattr(each, "cell", each), "training", None) for each in given)
    seeds = {{getattr(each, "seed", None) for each in trainings}}
    return (_changed_{name}_{function} if {seed} in seeds else _plain_{name}_{function})(*given, **named)
"""


def make_candidate(
    name: str, folder: Path, revision: str | None = "HEAD", by_seed: Sequence[str] = ()
) -> Path:
    """Write one copy into a folder of that name, which must not be there yet, and return it.

    Without a revision it is of the files as they lie here, with their bytecode. With names ``by_seed`` it has
    all these changes, the first in cells whose seed is 0, the next in those of seed 1, and so on.
    """
    copy = folder / name
    if revision is None:
        half_written = shutil.ignore_patterns("*.pyc.*")
        shutil.copytree(HERE / "bench", copy / "bench", ignore=half_written)
        shutil.copy(HERE / "pyproject.toml", copy)
    else:
        copy.mkdir(parents=True)
        git = ["git", "-C", str(HERE), "archive", revision, "bench", "pyproject.toml"]
        with tarfile.open(
            fileobj=io.BytesIO(subprocess.run(git, capture_output=True, check=True).stdout)
        ) as files:
            files.extractall(copy, filter="data")
    for seed, each in enumerate(by_seed or [name]):
        change = CHANGES[each]
        lines = change.lines
        if by_seed:
            lines = lines.replace("_plain_", f"_plain_{each}_")
            functions = re.findall(rf"^_plain_{each}_(\w+) = ", lines, re.MULTILINE)
            lines += "".join(BY_SEED.format(name=each, function=one, seed=seed) for one in functions)
        with (copy / change.module).open("a", encoding="utf-8") as module:
            module.write(lines)
    return copy


if __name__ == "__main__":
    for candidate in CHANGES:
        print(make_candidate(candidate, Path(sys.argv[1]), *sys.argv[2:3]))  # noqa: T201 - a script that says what it made
