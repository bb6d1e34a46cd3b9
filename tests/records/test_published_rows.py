"""Measurements as TOML: what a row becomes, what is refused, and where mistakes are said to be."""

from pathlib import Path

import pytest

from bench.errors import ScenarioError
from bench.records.published import Measured, read_rows, shipped_rows
from bench.scenario.parallel import ParallelSpec
from bench.scenario.types import JsonlData, LoraMethod, QloraMethod

HEAD = """
[source]
name = "lab"
title = "A laboratory"
repository = "example.org"
licence = "CC0"

[defaults]
tier = 1
reference = "page 1"
date = "2025"
gpu = "A100"
software = "torch 2.6"

[defaults.platform]
torch = "2.6"

[defaults.method.lora]
rank = 4
dropout = 0.1

[defaults.training]
micro_batch = 2
"""
ROW = """
[[rows]]
name = "one"
model.random = "gpt2"
method = { kind = "lora", rank = 64 }
training.sequence_length = 100
measured = [{ metric = "allocated", size_bytes = 1000 }]
"""


def _written(folder: Path, text: str) -> Path:
    path = folder / "rows.toml"
    path.write_text(text)
    return path


def test_row_is_laid_over_the_defaults_of_its_file_and_its_kind_of_method(tmp_path: Path) -> None:
    """A row's own values win, tables are merged, and a method takes the defaults of its kind only."""
    (row,) = read_rows(_written(tmp_path, HEAD + ROW)).rows
    assert row.cell is not None
    assert LoraMethod(rank=64, dropout=0.1) == row.cell.method
    assert (2, 100) == (row.cell.training.micro_batch, row.cell.training.sequence_length)
    assert ("cuda", "2.6", "lab/one") == (row.cell.device, row.platform.torch, row.cell.id)
    assert (Measured(metric="allocated", size_bytes=1000, low_bytes=1000, high_bytes=1000),) == row.measured


def test_a_row_of_several_gpus_has_the_table_of_a_scenario(tmp_path: Path) -> None:
    """It is laid over that of the defaults, and a row of one GPU takes it back."""
    head = HEAD + '[defaults.parallel]\nstrategy = "fsdp2"\ngpus = 4\nparam_dtype = "bf16"\n'
    alone = (
        ROW.replace('"one"', '"two"')
        + 'parallel = { strategy = "none", gpus = 1, param_dtype = "as-trained" }\n'
    )
    first, second = read_rows(_written(tmp_path, head + ROW + "parallel.gpus = 2\n" + alone)).rows
    cells = [row.cell for row in (first, second) if row.cell is not None]
    assert [ParallelSpec(strategy="fsdp2", gpus=2, param_dtype="bf16"), ParallelSpec()] == [
        cell.parallel for cell in cells
    ]


def test_refused_row_has_no_cell(tmp_path: Path) -> None:
    """A run that cannot be expressed keeps its number and its reason."""
    text = (
        '\n[[rows]]\nname = "gptq"\nrefused = "GPTQ."\nmeasured = [{ metric = "reserved", size_bytes = 5 }]\n'
    )
    (row,) = read_rows(_written(tmp_path, HEAD + text)).rows
    assert ("GPTQ.", None, 5) == (row.refused, row.cell, row.sizes[0].size_bytes)


@pytest.mark.parametrize(
    ("before", "after", "place"),
    [
        ("micro_batch = 2", "micro_batch = 0", "rows.toml:"),
        (
            'name = "one"',
            'nmae = "one"',
            'rows.toml:26: rows[0].nmae: is not a key of a row. Perhaps you meant "name"',
        ),
        ("sequence_length = 100", "sequence_lenght = 100", "rows.toml:29: rows[0].training"),
        ("size_bytes = 1000", "size_bytes = -1", "rows.toml:30: rows[0].measured"),
        ('kind = "lora", rank', "kind = [1], rank", "rows.toml:28: rows[0]"),
        (
            'random = "gpt2"',
            'random = "llama-2-7bb"',
            'model.random: unknown architecture "llama-2-7bb". Perhaps you meant "llama-2-7b"?',
        ),
        ('random = "gpt2"', 'wheel = "zzz"', 'rows.toml:27: rows[0].model.wheel: unknown wheel "zzz"'),
        ('name = "one"', 'name = "one"\nsteps = [3, 1]', "rows.toml:25: rows[0]: steps must be"),
        ('name = "one"', 'name = "one"\nsteps = [0, 1]\nplatform.device = "cpu"', "counters of CUDA"),
        ("[defaults.method.lora]", "[defaults]\nmethod = 3\n[other]", "rows.toml:"),
        ('name = "one"', 'name = "one"\nloop.driver = "trl"', "rows.toml:27: rows[0].loop.driver: "),
        ('name = "one"', 'name = "one"\nloop = "hf-trainer"', "rows.toml:27: rows[0].loop: "),
        (
            'name = "one"',
            'name = "one"\nparallel = { strategy = "fsdp3", gpus = 2 }',
            ":27: rows[0].parallel.strat",
        ),
        (
            'name = "one"',
            'name = "one"\nparallel = { strategy = "ddp", wrap = ["A"] }',
            "needs strategy fsdp",
        ),
        ('name = "one"', 'name = "one"\nparallel = { gpu = 2 }', "rows.toml:27: rows[0].parallel.gpu: "),
        ('name = "one"', 'name = "one"\nparallel.strategy = "deepspeed"', "DeepSpeed are not predicted"),
        ('name = "one"', 'name = "one"\nloop = { driver = "trl-sft", args = { packing = true } }', "packing"),
    ],
)
def test_mistake_is_told_with_its_line(tmp_path: Path, before: str, after: str, place: str) -> None:
    """Every mistake names the file and the line."""
    path = _written(tmp_path, (HEAD + ROW).replace(before, after))
    with pytest.raises(ScenarioError) as raised:
        read_rows(path)
    assert place in str(raised.value)


def test_a_loop_needs_no_settings_that_imitate_it(tmp_path: Path) -> None:
    """The row has both cells: the window told what to keep, and the trainer with its own arguments."""
    head = HEAD.replace("micro_batch = 2", "micro_batch = 2\nkeep_outputs = true\nuse_cache = true")
    head += '[defaults.loop]\ndriver = "hf-trainer"\nargs = { use_cache = true }\n'
    plain = ROW.replace('"one"', '"two"') + 'loop.driver = "window"\n'
    first, second = read_rows(_written(tmp_path, head + ROW + plain)).rows
    imitated, real = (one.cell for one in first.each_loop)
    assert imitated is not None
    assert real is not None
    assert ("window", True, True) == (
        imitated.loop.driver,
        imitated.training.keep_outputs,
        imitated.training.use_cache,
    )
    assert ("hf-trainer", {"use_cache": True}) == (real.loop.driver, real.loop.args)
    assert imitated.training.micro_batch == real.training.micro_batch == 2
    assert (False, False) == (real.training.keep_outputs, real.training.use_cache)
    assert len(second.each_loop) == 1


def test_two_rows_of_one_name_are_refused(tmp_path: Path) -> None:
    """A name says which row is meant, so it stands once."""
    with pytest.raises(ScenarioError, match="the name of an earlier row"):
        read_rows(_written(tmp_path, HEAD + ROW + ROW))


def test_paths_are_relative_to_the_file_that_holds_them_and_names_may_be_those_of_cells(
    tmp_path: Path,
) -> None:
    """A file that extends another keeps that one's paths where they point; a plus in a name is no mistake."""
    base = tmp_path / "base"
    base.mkdir()
    shared = HEAD + '\n[defaults.model]\npath = "weights"\n[defaults.data]\nsource = "jsonl"\n'
    (base / "shared.toml").write_text(shared + 'path = "/abs/rows.jsonl"\n')
    own = ROW.replace('"one"', '"mine/lora+dora/b1"').replace('model.random = "gpt2"\n', "")
    other = ROW.replace('model.random = "gpt2"', 'model.path = "mine"')
    found = read_rows(_written(tmp_path, 'extends = "base/shared.toml"\n' + own + other)).rows
    cells = [row.cell for row in found if row.cell is not None]
    assert ["mine/lora+dora/b1", "one"] == [row.name for row in found]
    assert [str(base / "weights"), str(tmp_path / "mine")] == [cell.model.path for cell in cells]
    assert {"/abs/rows.jsonl"} == {cell.data.path for cell in cells if isinstance(cell.data, JsonlData)}


def test_a_source_says_for_all_its_rows_which_steps_its_counters_cover(tmp_path: Path) -> None:
    """The defaults hold the steps, and a row's own win."""
    own = ROW.replace('name = "one"', 'name = "two"\nsteps = [0, 1]')
    head = HEAD.replace("tier = 1", "tier = 1\nsteps = [11, 20]")
    found = read_rows(_written(tmp_path, head + ROW + own)).rows
    assert [(11, 20), (0, 1)] == [row.steps for row in found]


def test_shipped_measurements_can_be_read_and_are_all_accounted_for() -> None:
    """Every source is there with all its rows, each with a cell or a reason."""
    counts = {
        found.source.name: (len(found.rows), sum(row.refused is None for row in found.rows))
        for found in shipped_rows()
    }
    assert counts == {
        "cudnn-frontend": (6, 6),
        "fms-acceleration": (57, 13),
        "fms-acceleration-fsdp": (137, 20),
        "fsdp_qlora": (20, 16),
        "lightning-lora-insights": (6, 6),
        "litgpt-config_hub": (16, 15),
        "litgpt-resource-tables": (10, 4),
        "ms-swift": (39, 10),
        "optimum-benchmark": (33, 33),
        "peft-metamathqa": (32, 30),
        "qwen-readme": (24, 0),
        "qwen-readme-speed": (12, 12),
        "rtx4080": (6, 6),
        "torchtitan": (3, 2),
    }


def test_shipped_qlora_runs_are_those_that_were_published() -> None:
    """A stage-by-stage row is the run that its source describes."""
    rows = {row.name: row for found in shipped_rows() if found.source.name == "rtx4080" for row in found.rows}
    cell = rows["qwen2.5-3b-s1024"].cell
    assert cell is not None
    assert isinstance(cell.method, QloraMethod)
    assert (16, True, "nf4") == (cell.method.rank, cell.method.double_quantisation, cell.method.quantisation)
    assert ("paged-adamw-8bit", "reentrant", True) == (
        cell.training.optimizer,
        cell.training.gradient_checkpointing,
        cell.training.keep_outputs,
    )
    assert {"adapt", "adapt_peak", "forward", "backward", "optimizer_step", "peak"} == {
        one.moment for one in rows["qwen2.5-3b-s1024"].sizes
    }


LITGPT = """
[source]
name = "SOURCE"
title = "Runs"
repository = "none"
licence = "none"
note = "A note."

[defaults.platform]
capability = [8, 0]

[defaults.training]
loss = "chunked"
upcast_outputs = true

[[rows]]
name = "one"
tier = 2
reference = "page"
date = "2023-10"
gpu = "A100"
software = "torch 2.1"
model.random = "llama-2-7b"
method = { kind = "lora", target_modules = ["q_proj"], adapter_dtype = "weights" }
training = { sequence_length = 100 }
measured = [{ metric = "allocated", size_bytes = 1000 }]
"""


@pytest.mark.parametrize("name", ["my-litgpt-runs", "lit-gpt", "lightning-blog"])
def test_a_source_of_litgpt_is_taken_for_one_and_the_page_says_so(tmp_path: Path, name: str) -> None:
    """Its loss in chunks keeps logits, and its models are those of the row's date."""
    found = read_rows(_written(tmp_path, LITGPT.replace("SOURCE", name)))
    (row,) = found.rows
    assert row.cell is not None
    assert ("2023-10-01", "chunked-logits") == (row.platform.litgpt, row.cell.training.loss)
    assert found.source.note.startswith("A note. By its name")


def test_a_day_that_is_given_needs_no_name(tmp_path: Path) -> None:
    """With platform.litgpt nothing is assumed, and nothing is told."""
    given = LITGPT.replace("[8, 0]", '[8, 0]\nlitgpt = "2024-05-31"')
    found = read_rows(_written(tmp_path, given.replace("SOURCE", "mine")))
    assert [("2024-05-31", "A note.")] == [(row.platform.litgpt, found.source.note) for row in found.rows]


def test_another_source_does_not_keep_logits_of_a_chunked_loss(tmp_path: Path) -> None:
    """What only chunked-logits has cannot be asked of chunked."""
    with pytest.raises(ScenarioError, match=r"loss chunked makes none; .* set loss to chunked-logits"):
        read_rows(_written(tmp_path, LITGPT.replace("SOURCE", "mine")))


def test_speeds_are_read_beside_sizes_with_their_bounds(tmp_path: Path) -> None:
    """A row holds seconds of a step or tokens a second; bounds are the value's own unless given."""
    speeds = (
        '{ metric = "step_time_s", value = 0.5, low = 0.45, high = 0.55 }, '
        '{ metric = "tokens_per_second", value = 900, counted = "non_padding", length = 60 }'
    )
    row = ROW.replace("measured = [{", f"measured = [{speeds}, {{")
    (read,) = read_rows(_written(tmp_path, HEAD + row)).rows
    step, tokens = read.speeds
    assert (0.45, 0.5, 0.55) == (step.low, step.value, step.high)
    assert (900, 900, "non_padding", 60) == (tokens.low, tokens.high, tokens.counted, tokens.length)
    assert 1 == len(read.sizes)
