"""Cells over several GPUs: which there are, and what is refused by name."""

from pathlib import Path
from typing import Any

import pytest

from bench.errors import ScenarioError
from bench.scenario.cell import contradictions
from bench.scenario.load import load_scenario
from tiny_cells import tiny_cell

FSDP2: dict[str, Any] = {"strategy": "fsdp2", "gpus": 2}


@pytest.mark.parametrize(
    ("driver", "parallel", "said"),
    [
        ("trl-dpo", FSDP2, "is not predicted in loop trl-dpo; choose hf-trainer, trl-sft"),
        ("mine:train", FSDP2, "is not predicted in loop mine:train"),
        ("trl-sft", {"strategy": "fsdp1", "gpus": 2}, "must be ddp or fsdp2 in loop trl-sft"),
        ("hf-trainer", FSDP2 | {"param_dtype": "bf16"}, "set training.autocast to bf16"),
    ],
)
def test_loops_that_are_not_spread_are_refused_by_name(
    driver: str, parallel: dict[str, Any], said: str
) -> None:
    """What accelerate decides cannot be set; autocast, which it goes by, can be under FSDP2 too."""
    with pytest.raises(ValueError, match=said):
        tiny_cell(parallel=parallel, loop={"driver": driver})
    allowed = tiny_cell(parallel=FSDP2, loop={"driver": "trl-sft"}, training={"autocast": "bf16"})
    assert allowed.parallel.sharded


def _load(folder: Path, parallel: str) -> list[str]:
    path = folder / "s.toml"
    model = '[models.tiny]\nrandom = "tiny-llama-test"\n[methods.lora]\n[data]\nsource = "synthetic"\n'
    path.write_text(f"{model}[parallel]\n{parallel}", encoding="utf-8")
    return [cell.id for cell in load_scenario(path).cells]


def test_a_list_of_gpus_makes_cells(tmp_path: Path) -> None:
    """Each number is a cell of its own."""
    found = _load(tmp_path, 'strategy = "fsdp2"\ngpus = [2, 4]')
    assert found == ["tiny/lora-r8/b1-s512-fsdp2-x2", "tiny/lora-r8/b1-s512-fsdp2-x4"]


def test_a_cell_of_one_gpu_is_stored_as_before() -> None:
    """What was measured before there were several keeps its digest: its document has no such table."""
    cell = tiny_cell()
    assert "parallel" not in cell.model_dump()
    assert cell.digest != tiny_cell(parallel=FSDP2).digest
    assert cell.comparison_key() != tiny_cell(parallel=FSDP2).comparison_key()


@pytest.mark.parametrize(
    ("parallel", "said"),
    [
        ('strategy = "fsdp2"\ngpus = 2\nactivation_checkpointing = true', "is for strategy fsdp1"),
        ('strategy = "deepspeed"', "DeepSpeed are not predicted"),
        ('strategy = "deepspeed"\ngpus = 2', "DeepSpeed are not predicted"),
        ('strategy = ["ddp", "zero"]\ngpus = [2, 4]\nparam_dtype = "bf16"', "parallel.strategy"),
        ('strategy = "fsdp1"\ngpus = 2\ncpu_offload = true', "parallel.cpu_offload: is for strategy fsdp2"),
        ('strategy = "fsdp1"\ngpus = 2\nreduce_dtype = "fp32"', "reduce_dtype: must be param_dtype's"),
        ("gpus = 2", "parallel.gpus: needs strategy ddp, fsdp1 or fsdp2, not none"),
        (
            'strategy = "ddp"\ngpus = 2\nparam_dtype = "bf16"',
            "parallel.param_dtype: needs strategy fsdp1 or fsdp2",
        ),
    ],
)
def test_what_is_not_predicted_is_refused_by_name(parallel: str, said: str, tmp_path: Path) -> None:
    """Each with the line and what to set instead, and nothing of what rests on a refused strategy."""
    with pytest.raises(ScenarioError, match=said) as refused:
        _load(tmp_path, parallel)
    assert 1 == len(str(refused.value).splitlines())


@pytest.mark.parametrize(
    ("method", "parallel", "field"),
    [
        ({"kind": "qlora"}, FSDP2, "quant_storage"),
        ({"kind": "qlora", "quant_storage": "bf16"}, FSDP2 | {"param_dtype": "fp32"}, "param_dtype"),
        ({"kind": "qlora", "quant_storage": "bf16"}, FSDP2 | {"strategy": "fsdp1"}, "kbit_preparation"),
        ({"kind": "lora", "base": "int8"}, FSDP2, "base"),
        ({"kind": "peft", "type": "ia3"}, FSDP2, "strategy"),
    ],
)
def test_packed_weights_are_sharded_only_as_they_can_be(
    method: dict[str, Any], parallel: dict[str, Any], field: str
) -> None:
    """Four bits are sharded in bf16 storage, int8 and other methods of peft not at all."""
    one = tiny_cell(method).model_copy(update={"parallel": tiny_cell(parallel=parallel).parallel})
    assert [problem[1] for problem in contradictions(one)] == [field]
