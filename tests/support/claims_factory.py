"""Made-up cases for tests of claims: one cell each, with round figures that a test can reckon with."""

from collections.abc import Sequence
from typing import Any

from bench.claims.cases import Answers, Case, OnCard
from bench.records.records import EvaluationItem
from records_factory import make_cell

GIB = 1024**3


def make_case(
    *,
    method: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    **changes: Any,
) -> Case:
    """Return a predicted case of LoRA r8 on a model of 7 billion parameters; peak 10 GiB."""
    named = method or {"kind": "lora", "rank": 8}
    cell = make_cell(
        id=f"big/{named['kind']}-{changes.pop('name', 'x')}",
        method=named,
        training={"sequence_length": 512, "micro_batch": 1} | (training or {}),
    )
    fields: dict[str, Any] = {
        "cell": cell,
        "instrument": "predicted",
        "source": "plan",
        "place": ("here",),
        "model": "big",
        "parameters": 7_000_000_000,
        "peak_bytes": 10 * GIB,
    }
    return Case(**fields | changes)


def on_card(answer: str, memory_gib: int = 24, needed_gib: int = 20) -> OnCard:
    """Return the answer for a card of that size, all of which is usable."""
    return OnCard(
        card=f"card{memory_gib}",
        memory_bytes=memory_gib * GIB,
        answer=answer,  # type: ignore[arg-type] # a test writes it out
        needed_bytes=needed_gib * GIB,
        usable_bytes=memory_gib * GIB,
    )


def answers(right: Sequence[bool], seed: int = 0) -> Answers:
    """Return one run's answers to as many questions."""
    items = tuple(
        EvaluationItem(doc_id=index, doc_hash=str(index), correct=correct)
        for index, correct in enumerate(right)
    )
    return Answers(seed=seed, task="held-out", items=items)
