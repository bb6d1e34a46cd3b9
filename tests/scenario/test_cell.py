"""Fields of a cell that exclude each other are told by the field, with what to do."""

from typing import Any, get_args, get_type_hints

import pytest
from pydantic import ValidationError

from bench.scenario.cell import Cell, _rules
from tiny_cells import tiny_cell

JSONL = {"source": "jsonl", "path": "rows.jsonl"}
PROMPT: dict[str, Any] = {"kind": "peft", "type": "prompt-tuning", "config": {"num_virtual_tokens": 4}}
PREFIX: dict[str, Any] = {**PROMPT, "type": "PREFIX_TUNING"}
TASK: dict[str, Any] = {"data": {"source": "task", "task": "largest-number"}}
ROWS = {"source": "jsonl", "path": "rows.jsonl", "held_out": "others.jsonl"}
HELD_OUT: dict[str, Any] = {**TASK, "evaluation": {"tasks": ["held-out"]}}
KEPT: dict[str, Any] = {"loss": "chunked-logits", "upcast_outputs": True, "keep_outputs": True}
LIGER: dict[str, Any] = {"loss": "liger"}
PATCHED: dict[str, Any] = {"kernels": "liger"}


@pytest.mark.parametrize(
    ("method", "changes", "expected"),
    [
        ({"kind": "full"}, {"training": LIGER}, "training.loss liger runs on CUDA only; set device"),
        ({"kind": "full"}, {"training": PATCHED}, "training.kernels liger runs on CUDA only; set device"),
        ({"kind": "full"}, {"training": PATCHED | LIGER}, "training.loss is Liger's own with kernels liger"),
        (
            {"kind": "full"},
            {"device": "cuda", "training": {**LIGER, "keep_outputs": True}},
            "training.keep_outputs is about logits, and loss liger makes none; turn one",
        ),
        (
            {"kind": "full"},
            {"device": "cuda", "training": {**LIGER, "upcast_outputs": True}},
            "training.upcast_outputs is about logits",
        ),
        (
            {"kind": "full"},
            {"training": {"loss": "chunked", "use_cache": True}},
            "training.use_cache is not for loss chunked",
        ),
        (PROMPT, {"training": {"batching": "pack"}}, "training.batching pack is not for prompt-tuning"),
        (PROMPT, HELD_OUT, "evaluation.tasks would be judged at wrong positions: prompt-tuning returns"),
        ({**PROMPT, "config": {}}, {}, "method.config needs num_virtual_tokens for prompt-tuning; set it"),
        (
            {"kind": "lora", "peft": {"init_lora_weights": "eva"}},
            {},
            "method.peft may not ask for eva, whose",
        ),
        ({"kind": "peft", "type": "poly"}, {}, "method.type poly needs task ids; choose another"),
        ({"kind": "peft", "type": "xlora"}, {}, "method.type xlora needs adapters that are trained already"),
        ({**PROMPT, "config": {"peft_type": "LORA"}}, {}, "method.config may not hold task_type, inference"),
        (
            {"kind": "peft", "type": "adalora", "config": {"total_step": 9}},
            {"training": {"loss": "chunked"}},
            "training.loss must be full for adalora",
        ),
        ({"kind": "full"}, {"loop": {"args": {"bf16": True}}}, "loop.args has no meaning for the window's"),
        (
            {"kind": "full"},
            {"loop": {"driver": "hf-trainer", "args": {"bf16": True, "optim": "sgd"}}},
            "set training.autocast, as for every loop; loop.args may not hold optim; set training.optimizer",
        ),
        (
            {"kind": "full"},
            {"loop": {"driver": "trl-sft"}, "training": {"loss": "chunked"}},
            "training.loss is for the window's own loop, and trl-sft decides it",
        ),
        (
            {"kind": "full"},
            {"loop": {"driver": "hf-trainer"}, "training": {"autocast": "fp16", "dtype": "fp32"}},
            "training.autocast fp16 is for CUDA in hf-trainer",
        ),
        (
            {"kind": "full"},
            {"loop": {"driver": "trl-sft"}, "data": {"attention_mask": "padded"}},
            "data.attention_mask padded is not for trl-sft",
        ),
        (
            {"kind": "full"},
            {"loop": {"driver": "trl-dpo"}, "data": {**JSONL, "format": "alpaca"}},
            "data.format must be preference for trl-dpo: rows with prompt",
        ),
        (
            {"kind": "full"},
            {"data": {**JSONL, "format": "preference", "template": "plain"}},
            "data.format preference is for loop.driver trl-dpo",
        ),
        (
            {"kind": "full"},
            {"loop": {"driver": "trl-dpo"}, "training": {"batching": "pack"}},
            "training.batching pack is not for trl-dpo",
        ),
        (
            {"kind": "full"},
            {"loop": {"driver": "trl-dpo"}, "data": {"source": "task", "task": "t", "train_on": "all"}},
            "data.train_on must be completion for trl-dpo",
        ),
        (
            {"kind": "peft", "type": "ia3"},
            {"loop": {"driver": "trl-dpo"}},
            "method.kind peft is not for trl-dpo here",
        ),
        (
            {"kind": "full"},
            {"data": ROWS},
            'data.held_out is asked about by evaluation.tasks = ["held-out"]; add that, or remove it',
        ),
        (
            {"kind": "full"},
            {"data": ROWS, "evaluation": {"tasks": ["held-out"], "num_fewshot": 2}},
            "data.held_out has one answer to each row, and no worked examples before",
        ),
        (
            {"kind": "full"},
            {"loop": {"driver": "trl-dpo", "args": {"precompute_ref_log_probs": True, "max_length": 8}}},
            "set training.sequence_length, as for every loop; loop.args may not hold precompute_ref",
        ),
        (
            {"kind": "lora"},
            {"loop": {"driver": "mine:train"}, "window": {"merge_check": True}},
            "window.merge_check is for the window's own loop",
        ),
    ],
)
def test_what_excludes_each_other_is_refused(
    method: dict[str, Any], changes: dict[str, Any], expected: str
) -> None:
    """Each contradiction has its sentence."""
    with pytest.raises(ValidationError) as caught:
        tiny_cell(method, **changes)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        (PREFIX, HELD_OUT),
        (PROMPT, {"training": {"loss": "chunked"}}),
        (
            {"kind": "full"},
            {"training": {"loss": "chunked-logits", "upcast_outputs": True, "keep_outputs": True}},
        ),
        ({"kind": "full"}, {"device": "cuda", "training": LIGER}),
    ],
)
def test_what_only_looks_like_it_is_allowed(method: dict[str, Any], changes: dict[str, Any]) -> None:
    """Neighbours of contradictions make a cell."""
    assert tiny_cell(method, **changes).id


@pytest.mark.parametrize(
    "driver", ["sft", "mine", "mine:", ":train", "mine:train()", "../mine:train", "a b:c", ""]
)
def test_a_driver_is_a_known_loop_or_a_function(driver: str) -> None:
    """Neither a path nor an expression passes for a function's name."""
    with pytest.raises(ValidationError, match=r"loop\.driver"):
        tiny_cell(loop={"driver": driver})


def test_the_window_s_own_loop_is_what_a_cell_without_a_loop_has() -> None:
    """Cells keep the digest they had before there were loops; another loop is another cell."""
    own = tiny_cell()
    assert own.digest == "834db4fb401b"
    assert own.digest == tiny_cell(loop={"driver": "window"}).digest
    others = {tiny_cell(loop={"driver": name}).digest for name in ("hf-trainer", "trl-sft", "mine:train")}
    assert len(others | {own.digest}) == 4
    assert own.comparison_key() != tiny_cell(loop={"driver": "hf-trainer"}).comparison_key()


def test_rules_are_about_fields_that_there_are() -> None:
    """Every path of contradictions.toml is a part of a cell, or a field or property of one of its kinds."""
    hints = get_type_hints(Cell)
    named = {path for when, unless, only, at, _ in _rules() for path in (*when, *unless, *only, at) if path}

    def kinds(hint: Any) -> list[Any]:
        return [kind for one in get_args(hint) for kind in kinds(one)] or [hint]

    for part, _, field in (path.partition(".") for path in sorted(named)):
        known = {name for kind in kinds(hints[part]) if field for name in (*dir(kind), *kind.model_fields)}
        assert field in known or not field, f"{part}.{field}"
