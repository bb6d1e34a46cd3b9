"""What a machine cannot run is said in one sentence that names what to do, before anything is loaded."""

import pytest

from bench.records.readings import checked, plain
from bench.records.records import DeviceFacts
from bench.runner.schedule import slow_on_cpu, why_unavailable
from records_factory import make_cell, make_environment
from replay_worker import make_facts

ENVIRONMENT = make_environment(versions={"python": "3.11.9", "torch": "2.13.0", "bitsandbytes": "0.50.0"})
AMPERE = {
    "cuda_available": True,
    "cuda_unavailable_reason": None,
    "cuda_name": "NVIDIA A100",
    "cuda_capability": (8, 0),
    "bf16_on_cuda": True,
    "flash_attention_2": True,
}
PASCAL = AMPERE | {"cuda_name": "Tesla P100", "cuda_capability": (6, 0), "bf16_on_cuda": False}
MAXWELL = PASCAL | {"cuda_name": "Tesla M40", "cuda_capability": (5, 2)}
FP16 = {"dtype": "fp16"}
FLASH = {"attention": "flash_attention_2"}
QLORA = {"kind": "qlora", "compute_dtype": "fp16"}
INT8 = {"kind": "lora", "base": "int8"}


@pytest.mark.parametrize(
    ("facts", "changes", "expected"),
    [
        ({}, {}, None),
        (
            {},
            {"device": "cuda"},
            "This cell needs a CUDA device and there is none (this build of torch has no",
        ),
        ({}, {"training": {"attention": "flex_attention"}}, "Attention flex_attention has no backward pass"),
        ({}, {"method": {"kind": "qlora"}}, None),
        (AMPERE, {"device": "cuda", "training": {"loss": "liger"}}, "Loss liger needs the package liger-ker"),
        (AMPERE, {"device": "cuda", "training": {"kernels": "liger"}}, "Kernels liger needs the package lig"),
        (
            {},
            {"loop": {"driver": "trl-sft"}},
            "Loop trl-sft needs the package trl, which is not installed; pip",
        ),
        (AMPERE, {"device": "cuda", "training": FLASH}, None),
        (AMPERE | {"flash_attention_2": False}, {"device": "cuda", "training": FLASH}, "Attention flash_"),
        (PASCAL, {"device": "cuda"}, "Tesla P100 has no bf16; set training.dtype"),
        (
            PASCAL,
            {"device": "cuda", "training": {"dtype": "fp32", "autocast": "bf16"}},
            "Tesla P100 has no bf16",
        ),
        (PASCAL, {"device": "cuda", "training": FP16, "method": {"kind": "qlora"}}, "Tesla P100 has no bf16"),
        (PASCAL, {"device": "cuda", "training": FP16}, None),
        (PASCAL, {"device": "cuda", "training": FP16 | FLASH}, "Tesla P100 is older than flash_attention_2"),
        (PASCAL, {"device": "cuda", "training": FP16, "method": QLORA}, None),
        (
            PASCAL,
            {"device": "cuda", "training": FP16, "method": INT8},
            "Tesla P100 is older than int8 weights",
        ),
        (
            MAXWELL,
            {"device": "cuda", "training": FP16, "method": QLORA},
            "Tesla M40 is older than 4-bit weights",
        ),
    ],
)
def test_each_obstacle_has_its_sentence(
    facts: dict[str, object], changes: dict[str, object], expected: str | None
) -> None:
    """None where the cell can run; else a sentence, ended by a full stop, with advice after a semicolon."""
    found = why_unavailable(make_cell(**changes), make_facts(**facts), ENVIRONMENT)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.startswith(expected)
    assert "; " in found
    assert found.endswith(".")


@pytest.mark.parametrize(
    "changes", [{"method": QLORA}, {"method": INT8}, {"training": {"optimizer": "adamw-8bit"}}]
)
def test_bitsandbytes_is_asked_for_by_all_that_use_it(changes: dict[str, object]) -> None:
    """Without the package, 4-bit, int8 and 8-bit optimizers are not available, and plain LoRA is."""
    without = make_environment(versions={"python": "3.11.9", "torch": "2.13.0"})
    found = why_unavailable(make_cell(**changes), make_facts(), without)
    assert (
        found == "This cell needs the package bitsandbytes, which is not installed; pip install bitsandbytes."
    )
    assert why_unavailable(make_cell(), make_facts(), without) is None


def test_an_unknown_capability_is_given_the_chance_to_fail() -> None:
    """A card that does not say what it is, is not refused."""
    facts = checked(DeviceFacts, plain(plain(make_facts(**AMPERE)) | {"cuda_capability": None}))
    assert why_unavailable(make_cell(device="cuda", training=FLASH), facts, ENVIRONMENT) is None


@pytest.mark.parametrize(
    ("changes", "slow"),
    [
        ({"training": {"dtype": "bf16"}}, True),
        ({"training": {"dtype": "fp32", "autocast": "bf16"}}, True),
        ({"training": {"dtype": "fp32"}, "method": {"kind": "qlora"}}, True),
        ({"training": {"dtype": "fp32"}}, False),
        ({"device": "cuda", "training": {"dtype": "bf16"}}, False),
    ],
)
def test_bf16_on_a_processor_without_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], *, slow: bool
) -> None:
    """With what to write instead, and how many cells it is about; on a GPU and elsewhere nothing is said."""
    monkeypatch.setattr("bench.runner.schedule.cpu_multiplies_bf16", lambda: False)
    told = slow_on_cpu([make_cell(**changes)] * 2)
    assert (told is not None) is slow
    assert told is None or ("2 cells" in told and 'training.dtype = "fp32"' in told)
    monkeypatch.setattr("bench.runner.schedule.cpu_multiplies_bf16", lambda: True)
    assert slow_on_cpu([make_cell(**changes)]) is None
