"""Made-up cases for tests of claims: one cell each, with round figures that a test can reckon with."""

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from bench.claims.cases import Case
from bench.claims.judge import Claim
from bench.claims.rules import Rule
from bench.compare.comparison import measure
from bench.records.predictions import CardFit
from bench.records.records import Measurement
from bench.scenario.catalogue import Architecture
from records_factory import make_cell, make_record

GIB = 1024**3
RULE: TypeAdapter[Any] = TypeAdapter(Rule)


def make_claim(*rules: dict[str, Any], **changes: Any) -> Claim:
    """Return a claim with these tests."""
    fields = {"id": "it", "statement": "it", "source": "it", "about": "it"}
    return Claim.model_validate(fields | {"tests": tuple(map(RULE.validate_python, rules))} | changes)


def make_case(
    *,
    method: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    model: str = "big",
    parameters: int = 7_000_000_000,
    measurements: Sequence[Measurement] = (),
    **changes: Any,
) -> Case:
    """Return a predicted case of LoRA r8 on a model of 7 billion parameters, none in embeddings; peak 10 GiB.

    With measurements it was run here, with a seed for each.
    """
    named = method or {"kind": "lora", "rank": 8}
    cells = [
        make_cell(
            id=f"big/{named['kind']}-{changes.get('name', 'x')}",
            method=named,
            training={"sequence_length": 512, "micro_batch": 1, "seed": seed} | (training or {}),
        )
        for seed in range(max(1, len(measurements)))
    ]
    runs = [make_record(cell=cell, measurement=one) for cell, one in zip(cells, measurements, strict=False)]
    fields: dict[str, Any] = {
        "cell": cells[0],
        "instrument": "predicted",
        "source": "plan",
        "place": ("here",),
        "shape": Architecture(
            name=model,
            parameters=parameters,
            licence="none",
            source="made up",
            config={"model_type": "llama", "vocab_size": 0, "hidden_size": 1},
        ),
        "peak_bytes": 10 * GIB,
        "measured": measure(runs)[0] if runs else None,
    }
    return Case(**fields | {name: value for name, value in changes.items() if name != "name"})


def on_card(answer: Any, memory_gib: int = 24, needed_gib: int = 20) -> tuple[int, CardFit]:
    """Return the answer for a card of that size, all of which is usable."""
    verdict = CardFit(
        card=f"card{memory_gib}",
        answer=answer,
        needed_bytes=needed_gib * GIB,
        usable_bytes=memory_gib * GIB,
    )
    return memory_gib * GIB, verdict
