"""What a sweep has to do: which cells, in which order, what is on disk already and what cannot run here."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from bench.errors import UsageError
from bench.records.environment import KEY_PACKAGES
from bench.records.records import DeviceFacts, Environment, Outcome, Record
from bench.scenario.cell import Cell
from bench.scenario.types import BitsandbytesOptimizer, JsonlData
from bench.training.examples import check_data

KEY_MACHINE = ("architecture", "cpu_model", "cpu_cores")
ENDED_BY_LIMITS = frozenset({"oom", "timeout"})
_READ_BYTES = 1 << 20
# https://huggingface.co/docs/bitsandbytes/main/en/installation (NVIDIA CUDA, hardware requirements)
NF4_CAPABILITY = (6, 0)
INT8_CAPABILITY = (7, 5)
# https://github.com/Dao-AILab/flash-attention#nvidia-cuda-support (Ampere and newer)
FLASH_ATTENTION_CAPABILITY = (8, 0)


@dataclass(frozen=True, kw_only=True)
class ScheduledRun:
    """One run to do; ``reason`` says why this machine cannot, and then nothing is started."""

    cell: Cell
    key: str
    run: int
    reason: str | None


def parse_outcomes(text: str) -> frozenset[Outcome]:
    """Return the outcomes of a comma-separated list; raise ``UsageError`` for one there is not."""
    known: tuple[Outcome, ...] = get_args(Outcome)
    names = [name for part in text.split(",") if (name := part.strip())]
    for name in names:
        if name not in known:
            raise UsageError(f"--retry {name}: there is no such outcome; choose from {', '.join(known)}")
    return frozenset(outcome for outcome in known if outcome in names)


def run_key(
    cell: Cell, environment: Environment, facts: DeviceFacts, inputs_digest: str | None = None
) -> str:
    """Return what two runs must share to be the same: a SHA-256 of cell, inputs, versions and machine."""
    content = {
        "cell": cell.digest,
        "versions": {name: environment.versions.get(name) for name in ("python", *KEY_PACKAGES)},
        "machine": {name: environment.machine.get(name) for name in KEY_MACHINE},
        "device": facts.cuda_name if cell.device == "cuda" else None,
        "threads": [facts.cpu_threads, environment.threads],
        "inputs": inputs_digest,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def require_data(cells: Sequence[Cell]) -> None:
    """Check the data of cells before anything is loaded; raise ``UsageError``, a line for each mistake."""
    problems = {cell.data: check_data(cell.data) for cell in cells}
    if found := dict.fromkeys(filter(None, problems.values())):
        raise UsageError("\n".join(found))


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """How often each cell is run, and which records do not count as done; skipped ones do only on request."""

    repeats: int = 1
    retry: Collection[Outcome] = ()
    force: bool = False
    keep_skipped: bool = False


def schedule_runs(
    cells: Sequence[Cell],
    records: Sequence[Record],
    *,
    key_of: Callable[[Cell], str],
    reason_of: Callable[[Cell], str | None],
    options: ScheduleOptions,
) -> list[ScheduledRun]:
    """Return the runs to do, repeats outermost: every cell once, then every cell again.

    A run on disk counts as done whatever its outcome, except outcomes to retry, *contaminated*,
    *unavailable* where the machine can do it by now, *skipped* unless those are kept, and *oom* and
    *timeout* under limits that have been changed since. What does not count stays on disk, and the new run
    takes the next number.
    """
    last_run: Counter[str] = Counter()
    for record in records:
        last_run[record.key] = max(last_run[record.key], record.run)
    keys = {cell.id: key_of(cell) for cell in cells}
    reasons = {cell.id: reason_of(cell) for cell in cells}

    def counts(record: Record, cell: Cell) -> bool:
        if record.key != keys[cell.id] or record.outcome in {"contaminated", *options.retry}:
            return False
        if record.outcome == "skipped":
            return options.keep_skipped
        if record.outcome == "unavailable":
            return reasons[cell.id] is not None
        return record.outcome not in ENDED_BY_LIMITS or record.cell.limits == cell.limits

    done = {
        cell.id: 0 if options.force else sum(counts(record, cell) for record in records) for cell in cells
    }
    scheduled = []
    for repeat in range(options.repeats):
        for cell in cells:
            if repeat < done[cell.id]:
                continue
            key = keys[cell.id]
            last_run[key] += 1
            scheduled.append(ScheduledRun(cell=cell, key=key, run=last_run[key], reason=reasons[cell.id]))
    return scheduled


def inputs_digest(cell: Cell) -> str | None:
    """Return a SHA-256 over the cell's local files, which can change under the same name, if any.

    A data file counts by its content, weights by name, size and time of change: they are too large to
    read twice. A file that is missing counts as such; the worker says what is wrong with it.
    """
    digest = hashlib.sha256()
    if isinstance(cell.data, JsonlData):
        try:
            with Path(cell.data.path).open("rb") as rows:
                while block := rows.read(_READ_BYTES):
                    digest.update(block)
        except OSError:
            digest.update(b"missing")
    if cell.model.path is not None:
        for file in sorted(Path(cell.model.path).glob("*.*")):
            status = file.stat()
            digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    elif not isinstance(cell.data, JsonlData):
        return None
    return digest.hexdigest()


def why_unavailable(cell: Cell, facts: DeviceFacts, environment: Environment) -> str | None:
    """Return in one sentence why this machine cannot run the cell, and what to do; None when it can."""
    return next(_obstacles(cell, facts, environment), None)


def _obstacles(cell: Cell, facts: DeviceFacts, environment: Environment) -> Iterator[str]:
    if needs_bitsandbytes(cell) and "bitsandbytes" not in environment.versions:
        yield "This cell needs the package bitsandbytes, which is not installed; pip install bitsandbytes."
    if cell.training.loss == "liger" and "liger-kernel" not in environment.versions:
        yield (
            "Loss liger needs the package liger-kernel, which is not installed; pip install liger-kernel, "
            "or set training.loss to chunked."
        )
    if cell.device == "cuda":
        yield from _cuda_obstacles(cell, facts)
    elif cell.training.attention == "flex_attention":
        # torch/nn/attention/flex_attention.py: "FlexAttention does not support backward on CPU."
        yield (
            "Attention flex_attention has no backward pass on a CPU; set training.attention to sdpa, or run "
            "this cell on a machine with a CUDA device."
        )


def needs_bitsandbytes(cell: Cell) -> bool:
    """Tell whether weights or optimizer state of this cell are bitsandbytes'."""
    int8_base = cell.method.kind == "lora" and cell.method.base == "int8"
    return (
        cell.method.kind == "qlora" or int8_base or cell.training.optimizer in get_args(BitsandbytesOptimizer)
    )


def _cuda_obstacles(cell: Cell, facts: DeviceFacts) -> Iterator[str]:
    if not facts.cuda_available:
        reason = (facts.cuda_unavailable_reason or "torch finds none").strip().rstrip(".")
        yield (
            f"This cell needs a CUDA device and there is none ({reason}); run it on a machine with one, or "
            'set device = "cpu" in the scenario.'
        )
        return
    name = facts.cuda_name or "this card"
    if uses_bf16(cell) and facts.bf16_on_cuda is False:
        yield f"{name} has no bf16; set training.dtype, autocast and compute_dtype to fp16 or fp32."
    if cell.training.attention == "flash_attention_2":
        if not facts.flash_attention_2:
            yield (
                "Attention flash_attention_2 needs the package flash-attn, which is not installed; "
                "pip install flash-attn, or set training.attention to sdpa."
            )
        elif _below(facts, FLASH_ATTENTION_CAPABILITY):
            yield f"{name} is older than flash_attention_2 supports (Ampere); set training.attention to sdpa."
    if cell.method.kind == "lora" and cell.method.base == "int8" and _below(facts, INT8_CAPABILITY):
        yield f"{name} is older than int8 weights support (Turing); use qlora, or lora over 16-bit weights."
    if cell.method.kind == "qlora" and _below(facts, NF4_CAPABILITY):
        yield f"{name} is older than 4-bit weights support (Pascal); use lora over 16-bit weights."


def uses_bf16(cell: Cell) -> bool:
    """Tell whether weights, autocast or the compute dtype of quantised weights are bf16."""
    compute_dtype = cell.method.compute_dtype if cell.method.kind == "qlora" else None
    return "bf16" in {cell.training.dtype, cell.training.autocast, compute_dtype}


def _below(facts: DeviceFacts, capability: tuple[int, int]) -> bool:
    """Tell whether the card is known to be older; an unknown one is given the chance to fail."""
    return facts.cuda_capability is not None and facts.cuda_capability < capability
