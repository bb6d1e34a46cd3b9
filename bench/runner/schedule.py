"""What a sweep has to do: which cells, in which order, what is on disk already and what cannot run here.

And what happens in it, one event each, for the callable that watches it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from bench.errors import UsageError, counted, not_installed
from bench.io import open_data
from bench.records.environment import KEY_PACKAGES, cpu_multiplies_bf16
from bench.records.messages import Message
from bench.records.predictions import Plan
from bench.records.records import (
    BEFORE_CODE,
    NS_PER_SECOND,
    DeviceFacts,
    Environment,
    Outcome,
    Record,
)
from bench.scenario.cell import Cell, quantises
from bench.scenario.types import BitsandbytesOptimizer, JsonlData
from bench.training.rows.examples import check_data
from bench.training.rows.own_rows import check_held_out
from bench.workers.supervise import JobEnd

KEY_MACHINE = ("architecture", "cpu_model", "cpu_cores")
ENDED_BY_LIMITS = frozenset({"oom", "timeout"})
# https://huggingface.co/docs/bitsandbytes/main/en/installation (NVIDIA CUDA, hardware requirements)
NF4_CAPABILITY = (6, 0)
INT8_CAPABILITY = (7, 5)
# https://github.com/Dao-AILab/flash-attention#nvidia-cuda-support (Ampere and newer)
FLASH_ATTENTION_CAPABILITY = (8, 0)


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Where records go, which cells are run, how often, and what is run again.

    ``predict`` has memory predicted first; ``skip_unfit`` then skips cells that cannot fit the card.
    ``allow_code`` are functions that may be loops, imported from ``code_folder`` (empty: the working folder).
    ``snapshot`` has the worker write the history of CUDA's allocator beside each record.
    """

    results: Path
    repeats: int = 1
    retry: Collection[Outcome] = ()
    force: bool = False
    only: str | None = None
    trust_remote_code: bool = False
    allow_code: Sequence[str] = ()
    code_folder: str = ""
    predict: bool = False
    skip_unfit: bool = False
    snapshot: bool = False


@dataclass(frozen=True, kw_only=True)
class ScheduledRun:
    """One run to do; ``reason`` says why this machine cannot, and then nothing is started."""

    cell: Cell
    key: str
    run: int = 1
    reason: str | None = None
    inputs_digest: str | None = None

    def ended(self, end: JobEnd, facts: DeviceFacts, **others: Any) -> Record:
        """Return the record of how it ended; ``others`` are the record's fields that are not of the run."""
        made = end.measurement
        return Record(
            cell=self.cell,
            key=self.key,
            inputs_digest=self.inputs_digest,
            run=self.run,
            outcome=end.outcome,
            failure=end.failure,
            total_ns=end.total_ns,
            measurement=made if made.device else made.replace(device=facts),
            **others,
        )


class Preparing(NamedTuple):
    """Something before or between cells takes its time: the libraries, the weights."""

    what: str


class Note(NamedTuple):
    """Something the user has to know, in one sentence."""

    text: str


class SweepStarted(NamedTuple):
    """How much there is to do; runs on disk are not done again.

    ``expected_s`` is how long each run to do took before, in order; None where the folder has no such run.
    """

    runs_to_do: int
    runs_on_disk: int
    expected_s: Sequence[float | None] = ()


class RunStarted(NamedTuple):
    """A cell's workers are asked for."""

    cell: Cell
    run: int


class RunEnded(NamedTuple):
    """A record was written; ``again`` says that the run is done once more, as the next."""

    record: Record
    again: bool = False


Event = Preparing | Note | SweepStarted | Plan | RunStarted | Message | RunEnded
"""What happens in a sweep: also what its cells are predicted to take, and what a worker says meanwhile."""
Observe = Callable[[Event], None]
"""Gets each event. Must return soon: the supervisor waits for it."""


def parse_outcomes(text: str) -> frozenset[Outcome]:
    """Return the outcomes of a comma-separated list; raise ``UsageError`` for one there is not."""
    known: tuple[Outcome, ...] = get_args(Outcome)
    names = [name for part in text.split(",") if (name := part.strip())]
    for name in names:
        if name not in known:
            raise UsageError(f"--retry {name}: there is no such outcome; choose from {', '.join(known)}")
    return frozenset(outcome for outcome in known if outcome in names)


def prepare(cell: Cell, environment: Environment, facts: DeviceFacts, code_folder: str = "") -> ScheduledRun:
    """Return a cell's first run on this machine.

    Its key is what two runs must share to be the same: a SHA-256 of cell, inputs, versions and machine.
    """
    inputs = inputs_digest(cell, code_folder)
    packages = ("python", *KEY_PACKAGES, *(["trl"] if cell.loop.driver.startswith("trl-") else []))
    content = {
        "cell": cell.digest,
        "versions": {name: environment.versions.get(name) for name in packages},
        "machine": {name: environment.machine.get(name) for name in KEY_MACHINE},
        "device": facts.cuda_name if cell.device == "cuda" else None,
        "threads": [facts.cpu_threads, environment.threads],
        "inputs": inputs,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return ScheduledRun(
        cell=cell, key=key, reason=why_unavailable(cell, facts, environment), inputs_digest=inputs
    )


def require_data(cells: Sequence[Cell]) -> list[str]:
    """Return in a line what each file of rows is read as, before anything is loaded.

    Raises ``UsageError``, a line for each mistake.
    """
    lines, problems = examine_data(cells)
    if problems:
        raise UsageError("\n".join(problems))
    return lines


def examine_data(cells: Sequence[Cell]) -> tuple[list[str], list[str]]:
    """Return in a line each what the cells' data is read as, and what is wrong with it."""
    lines, problems = {}, {}
    for data, pairs in dict.fromkeys((cell.data, cell.loop.takes_pairs) for cell in cells):
        try:
            lines[check_data(data, pairs=pairs)] = True
            if isinstance(data, JsonlData) and (rows := data.held_out_rows):
                lines[check_data(rows)] = True
                check_held_out(rows)
        except UsageError as error:
            problems[str(error)] = True
    for text in dict.fromkeys(cell.evaluation.text_file for cell in cells):
        if text is not None and not Path(text).is_file():
            problems[f"evaluation.text: {text} does not exist; name a .txt or .jsonl file, or mmlu-281"] = (
                True
            )
    return [line for line in lines if line], list(problems)


def require_allowed_code(cells: Sequence[Cell], allowed: Sequence[str]) -> None:
    """Raise ``UsageError`` for a loop that is code which the command line does not name exactly."""
    for cell in cells:
        if cell.loop.code is not None and cell.loop.driver not in allowed:
            raise UsageError(
                f'{cell.id} trains with loop.driver "{cell.loop.driver}", which is code from outside bench; '
                f"read it, and give --allow-code {cell.loop.driver} to bench run, gate or calibrate"
            )


def require_one_gpu(cells: Sequence[Cell]) -> None:
    """Raise ``UsageError`` for a cell over several GPUs, which gates predict and none measures."""
    for cell in cells:
        if cell.parallel.several:
            raise UsageError(
                f"{cell.id} is for {cell.parallel.strategy}, which bench run measures and no gate; gate it "
                "with --predict, leave such cells out, or set parallel.strategy to none"
            )


def schedule_runs(
    prepared: Sequence[ScheduledRun], records: Sequence[Record], options: SweepOptions
) -> list[ScheduledRun]:
    """Return the runs to do, repeats outermost: every cell once, then every cell again.

    A run on disk counts as done whatever its outcome, except with ``force``, outcomes to retry,
    *contaminated*, *unavailable* where the machine can do it by now, *skipped* unless cells are being
    skipped, and *oom* and *timeout* under limits that have been changed since. What does not count stays on
    disk, and the new run takes the next number.
    """

    def counts(record: Record, one: ScheduledRun) -> bool:
        if options.force or record.key != one.key or record.outcome in {"contaminated", *options.retry}:
            return False
        if record.outcome == "skipped":
            return options.skip_unfit
        if record.outcome == "unavailable":
            return one.reason is not None
        return record.outcome not in ENDED_BY_LIMITS or record.cell.limits == one.cell.limits

    last_run: Counter[str] = Counter()
    for record in records:
        last_run[record.key] = max(last_run[record.key], record.run)
    done = [sum(counts(record, one) for record in records) for one in prepared]
    scheduled = []
    for repeat in range(options.repeats):
        for one, runs_done in zip(prepared, done, strict=True):
            if repeat >= runs_done:
                last_run[one.key] += 1
                scheduled.append(replace(one, run=last_run[one.key]))
    return scheduled


def expected_s(runs: Sequence[ScheduledRun], records: Sequence[Record]) -> list[float | None]:
    """Return for each run how long the last good one of its cell took, by whatever versions; or None."""
    took = {record.cell.id: record.total_ns / NS_PER_SECOND for record in records if record.outcome == "ok"}
    return [took.get(run.cell.id) for run in runs]


def inputs_digest(cell: Cell, code_folder: str = "") -> str | None:
    """Return a SHA-256 over the cell's local files, which can change under the same name, if any.

    A data file counts by its content, weights by name, size and time of change: they are too large to read
    twice. The source of a loop of the user's has one of its own, after a plus sign. A file that is missing
    counts as such; the worker says what is wrong with it.
    """
    found = ""
    data = cell.data if isinstance(cell.data, JsonlData) else None
    files = [data and data.path, data and data.held_out, cell.evaluation.text_file]
    if any(files) or cell.model.path is not None:
        digest = _digest_of([Path(file) for file in files if file])
        if cell.model.path is not None:
            for file in sorted(Path(cell.model.path).glob("*.*")):
                status = file.stat()
                digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        found = digest.hexdigest()
    code = _code_of(cell, Path(code_folder))
    if code:
        found += f"{BEFORE_CODE}{_digest_of(code).hexdigest()}"
    return found or None


def _code_of(cell: Cell, folder: Path) -> list[Path]:
    """Return the user's code that a cell runs: a module's whole package, or all that lies beside a script."""
    code = cell.loop.code
    if code is None:
        return []
    script = folder / f"{code}.py"
    if cell.loop.is_function or not script.is_file():
        package, _, inside = code.partition(".")
        whole = sorted((folder / package).rglob("*.py")) if inside or (folder / package).is_dir() else []
        return whole or [folder / f"{package}.py"]
    return sorted(script.parent.glob("*.py"))


def _digest_of(files: Sequence[Path]) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for file in files:
        try:
            with open_data(file) as rows:
                hashlib.file_digest(rows, lambda: digest)
        except OSError:
            digest.update(b"missing")
    return digest


def why_unavailable(cell: Cell, facts: DeviceFacts, environment: Environment) -> str | None:
    """Return in one sentence why this machine cannot run the cell, and what to do; None when it can."""
    return next(_obstacles(cell, facts, environment), None)


def _obstacles(cell: Cell, facts: DeviceFacts, environment: Environment) -> Iterator[str]:
    training, method = cell.training, cell.method
    if cell.parallel.several and cell.window.merge_check:
        yield "Over several GPUs there is no window.merge_check; leave it out."
    if cell.parallel.strategy == "fsdp1" and (cell.evaluation.tasks or cell.evaluation.text):
        yield "Under fsdp1 there is no evaluation; leave it out, or set parallel.strategy to fsdp2."
    packed = quantises(method) and getattr(method, "implementation", "") == "bitsandbytes"
    own = packed or training.optimizer in get_args(BitsandbytesOptimizer)
    if own and "bitsandbytes" not in environment.versions:
        yield not_installed("This cell", "bitsandbytes")
    if cell.loop.driver.startswith("trl-") and "trl" not in environment.versions:
        yield not_installed(f"Loop {cell.loop.driver}", "trl")
    for lever, other in (("loss", "chunked"), ("kernels", "torch")):
        if getattr(training, lever) == "liger" and "liger-kernel" not in environment.versions:
            yield not_installed(f"{lever.capitalize()} liger", "liger-kernel", f"training.{lever} to {other}")
    if cell.device == "cuda":
        yield from _cuda_obstacles(cell, facts)
    elif training.attention == "flex_attention":
        # torch/nn/attention/flex_attention.py: "FlexAttention does not support backward on CPU."
        yield (
            "Attention flex_attention has no backward pass on a CPU; set training.attention to sdpa, or run "
            "this cell on a machine with a CUDA device."
        )


def slow_on_cpu(cells: Sequence[Cell]) -> str | None:
    """Return what to say before cells that multiply in bf16 on a CPU that has no products for it."""
    slow = sum(cell.device == "cpu" and _multiplies_bf16(cell) for cell in cells)
    if not slow or cpu_multiplies_bf16():
        return None
    return (
        f"bf16 is slow on this processor, which has no products for it ({counted(slow, 'cell')}); "
        'with training.dtype = "fp32" (QLoRA: compute_dtype too) steps can be twenty times faster.'
    )


def _multiplies_bf16(cell: Cell) -> bool:
    training, method = cell.training, cell.method
    compute_dtype = method.compute_dtype if method.kind == "qlora" else None
    return "bf16" in {training.dtype, training.autocast, compute_dtype}


def _cuda_obstacles(cell: Cell, facts: DeviceFacts) -> Iterator[str]:
    if not facts.cuda_available:
        reason = (facts.cuda_unavailable_reason or "torch finds none").strip().rstrip(".")
        yield (
            f"This cell needs a CUDA device and there is none ({reason}); run it on a machine with one, or "
            'set device = "cpu" in the scenario.'
        )
        return
    training, method = cell.training, cell.method
    name = facts.cuda_name or "this card"
    if facts.bf16_on_cuda is False and _multiplies_bf16(cell):
        yield f"{name} has no bf16; set training.dtype, autocast and compute_dtype to fp16 or fp32."
    flash = training.attention == "flash_attention_2"
    if flash and not facts.flash_attention_2:
        yield not_installed("Attention flash_attention_2", "flash-attn", "training.attention to sdpa")

    def older_than(capability: tuple[int, int]) -> bool:
        """Tell whether the card is known to be older; an unknown one is given the chance to fail."""
        return facts.cuda_capability is not None and facts.cuda_capability < capability

    if flash and older_than(FLASH_ATTENTION_CAPABILITY):
        yield f"{name} is older than flash_attention_2 supports (Ampere); set training.attention to sdpa."
    if method.kind == "lora" and method.base == "int8" and older_than(INT8_CAPABILITY):
        yield f"{name} is older than int8 weights support (Turing); use qlora, or lora over 16-bit weights."
    if method.kind == "qlora" and older_than(NF4_CAPABILITY):
        yield f"{name} is older than 4-bit weights support (Pascal); use lora over 16-bit weights."
