"""What could be changed in a cell: each lever once, impossible and idle changes left out."""

from typing import Any

from bench.predict.pool import variants
from records_factory import make_cell


def changes(method: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """Return the changed cells by what was changed."""
    cell = make_cell(method=method, training={"sequence_length": 256, "micro_batch": 4} | training)
    return dict(variants(cell))


def test_full_fine_tuning_has_every_lever() -> None:
    """One at a time, other methods among them, and the savings of one method together at the end."""
    found = changes({"kind": "full"}, {})
    assert list(found) == [
        "gradient checkpointing",
        "paged 8-bit AdamW",
        "loss in chunks",
        "LoRA of rank 16",
        "QLoRA of rank 16",
        "half the sequence length",
        "half the micro-batch, twice the accumulation",
        "gradient checkpointing, paged 8-bit AdamW and loss in chunks",
    ]
    halved = found["half the micro-batch, twice the accumulation"].training
    assert (halved.micro_batch, halved.gradient_accumulation) == (2, 2)
    assert found["half the sequence length"].training.sequence_length == 128
    together = list(found.values())[-1].training
    assert (together.gradient_checkpointing, together.optimizer, together.loss) == (
        "non-reentrant",
        "paged-adamw-8bit",
        "chunked",
    )


def test_what_is_done_already_is_not_proposed() -> None:
    """A cell with all savings on has only batch and length left."""
    training = {
        "micro_batch": 1,
        "gradient_checkpointing": "reentrant",
        "optimizer": "paged-adamw-8bit",
        "loss": "chunked",
    }
    assert list(changes({"kind": "qlora"}, training)) == ["half the sequence length"]


def test_lora_keeps_its_rank_and_targets_over_a_4_bit_base() -> None:
    """Only the base changes."""
    method = {"kind": "lora", "rank": 32, "target_modules": ["q_proj"]}
    changed = changes(method, {})["QLoRA (NF4, double quantisation)"].method
    assert (changed.kind, changed.rank, changed.target_modules) == ("qlora", 32, ("q_proj",))


def test_shards_may_go_to_the_host() -> None:
    """Under FSDP2 what is sharded can be offloaded, once; a 4-bit base is stored as FSDP gathers it."""
    sharded = {"strategy": "fsdp2", "gpus": 2}
    method, training = {"kind": "lora", "rank": 8}, {"gradient_checkpointing": "non-reentrant"}
    found = dict(variants(make_cell(method=method, training=training, parallel=sharded)))
    offloaded = found["offloading to the host"]
    assert offloaded.parallel.cpu_offload
    assert found["QLoRA (NF4, double quantisation)"].method.model_dump()["quant_storage"] == "bf16"
    assert "offloading to the host" not in dict(variants(offloaded))
