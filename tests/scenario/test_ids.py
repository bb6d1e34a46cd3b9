"""Ids of cells: readable, unique, safe as file names, and the same whatever the order of lists."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.errors import ScenarioError
from bench.scenario.cell import EXTRA_READINGS, HOW_IT_LEARNS, Cell
from bench.scenario.load import load_scenario

_HEAD = """
[models."llama-2-7b"]
hub = "meta-llama/Llama-2-7b-hf"
[data]
source = "synthetic"
"""


def _ids(folder: Path, text: str) -> list[str]:
    path = folder / "s.toml"
    path.write_text(_HEAD + text, encoding="utf-8")
    return [cell.id for cell in load_scenario(path).cells]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[methods.full]", "llama-2-7b/full/b1-s512"),
        (
            (
                "[methods.full]\n[training]\nmicro_batch = 4\nsequence_length = 256\n"
                'optimizer = "adamw-8bit"\n'
                'gradient_checkpointing = "non-reentrant"'
            ),
            "llama-2-7b/full/b4-s256-ckpt-adamw8bit",
        ),
        ("[methods.lora]\nrank = 64\nalpha = 3", "llama-2-7b/lora-r64/b1-s512"),
        (
            '[methods.qlora]\nimplementation = "reference"',
            "llama-2-7b/qlora-nf4-dq-r8-reference/b1-s512",
        ),
        ('[methods.lora]\nbase = "int8"', "llama-2-7b/lora-int8-r8/b1-s512"),
        ('[methods.lora-int8]\nkind = "lora"\nbase = "int8"', "llama-2-7b/lora-int8-r8/b1-s512"),
        ("[methods.qlora]\nrank = 16", "llama-2-7b/qlora-nf4-dq-r16/b1-s512"),
        (
            '[methods.lora]\n[parallel]\nstrategy = "fsdp2"\ngpus = 8\nreshard_after_forward = false',
            "llama-2-7b/lora-r8/b1-s512-fsdp2-x8-unresharded",
        ),
        ('[methods.full]\n[parallel]\nstrategy = "ddp"\ngpus = [2]', "llama-2-7b/full/b1-s512-ddp-x2"),
        (
            (
                '[methods.qlora]\nquantisation = "fp4"\ndouble_quantisation = false\ncompute_dtype = "fp32"\n'
                "kbit_preparation = false"
            ),
            "llama-2-7b/qlora-fp4-r8-compute-fp32-unprepared/b1-s512",
        ),
        (
            '[methods.lora]\ntarget_modules = ["q_proj", "v_proj"]\nbias = "all"\nadapter_dtype = "weights"',
            "llama-2-7b/lora-r8-on-q_proj+v_proj-bias-all-adapter-as-weights/b1-s512",
        ),
        (
            (
                '[methods.full]\n[training]\ndtype = "fp32"\nautocast = "bf16"\ngradient_accumulation = 8\n'
                'gradient_checkpointing = "reentrant"\nattention = "eager"\nbatching = "pad-to-length"\n'
                'optimizer = "paged-adamw-32bit"\nuse_cache = true'
            ),
            "llama-2-7b/full/b1-s512-ga8-fp32-autocast-bf16-ckpt-reentrant-eager-paged32bit-cache-padded",
        ),
        (
            (
                'attention_mask = "padded"\n[methods.qlora]\nquantise_lm_head = true\n[training]\n'
                'loss = "chunked-logits"\nloss_chunk_tokens = 64\nupcast_outputs = true\n'
                "keep_outputs = true\n"
                'empty_cache_steps = 10\noptimizer = "ademamix-8bit"'
            ),
            (
                "llama-2-7b/qlora-nf4-dq-r8-head/"
                "b1-s512-ademamix8bit-loss-chunked-logits-chunk64-upcast-kept-empty10-mask-padded"
            ),
        ),
        ('[methods.boft]\nkind = "peft"\ntype = "boft"', "llama-2-7b/boft/b1-s512"),
        ('[methods.mine]\nkind = "peft"\ntype = "IA3"', "llama-2-7b/mine-IA3/b1-s512"),
    ],
)
def test_cell_is_called(tmp_path: Path, text: str, expected: str) -> None:
    """A cell is called by its model, its method and whatever of its window differs from the default."""
    assert [expected] == _ids(tmp_path, text)


def test_other_lists_are_told_apart_by_their_field(tmp_path: Path) -> None:
    """A field without a token of its own appears as field=value, and only where it is a list."""
    text = (
        "[methods.lora]\nalpha = [8, 16.5]\npeft = [{}, { use_dora = true }]\n[methods.full]\n"
        "training.learning_rate = 1e-5\n[training]\nlearning_rate = [1e-4, 3e-4]\n[evaluation]\n"
        'tasks = [["a", "b"], ["c"]]\n'
    )
    ids = _ids(tmp_path, text)
    assert len(ids) == len(set(ids)) == 16 + 2
    assert "llama-2-7b/full/b1-s512-tasks=a+b" in ids
    assert "llama-2-7b/lora-r8-alpha=16.5-peft=_~44136f/b1-s512-tasks=c-learning_rate=0.0003" in ids


def test_models_axes_stand_in_the_models_part(tmp_path: Path) -> None:
    """Seeds and overrides of a random model are part of what the model is called."""
    text = '[methods.full]\n[models.toy]\nrandom = "tiny-llama-test"\nseed = [1, 2]\n'
    text += "overrides.num_hidden_layers = [2, 4]\noverrides.vocab_size = 64\n"
    assert [one for one in _ids(tmp_path, text) if one.startswith("toy")] == [
        f"toy-num_hidden_layers={layers}-seed={seed}/full/b1-s512" for seed in (1, 2) for layers in (2, 4)
    ]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations([1, 8, 64]), batches=st.permutations([1, 2, 4]), rates=st.permutations([1e-4, 2e-4])
)
def test_ids_do_not_depend_on_the_order_of_lists(
    tmp_path: Path, order: list[int], batches: list[int], rates: list[float]
) -> None:
    """The same lists in another order give the same ids, each for the same cell."""

    def digests(ranks: list[int], batches: list[int], rates: list[float]) -> dict[str, str]:
        path = tmp_path / "s.toml"
        text = (
            f"[methods.lora]\nrank = {ranks}\n[training]\nlearning_rate = {rates}\nmicro_batch = {batches}\n"
        )
        path.write_text(_HEAD + text, encoding="utf-8")
        return {cell.id: cell.digest for cell in load_scenario(path).cells}

    assert digests(sorted(order), sorted(batches), sorted(rates)) == digests(order, batches, rates)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("ab/.~*\\ é", min_size=1, max_size=60), min_size=2, max_size=4, unique=True))
def test_ids_are_safe_as_file_names_and_unique(tmp_path: Path, patterns: list[str]) -> None:
    """Whatever a value holds, the id has three parts, each safe as the name of a file."""
    values = ", ".join('"' + pattern.replace("\\", "\\\\") + '"' for pattern in patterns)
    ids = _ids(tmp_path, f"[methods.lora]\ntarget_modules = [[{values}]]\nrank = [1, 2]\n[methods.full]\n")
    for one in ids:
        parts = one.split("/")
        assert len(parts) == 3
        assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+~=-]*", part) for part in parts)
        assert max(map(len, parts)) < 200


def test_twins_are_refused_with_what_differs(tmp_path: Path) -> None:
    """Two methods whose cells would be called the same are an error that names the differing field."""
    text = '[methods.lora]\nrank = 8\n[methods.lora-r8]\nkind = "lora"\nrank = 8\ndropout = 0.1\n'
    with pytest.raises(ScenarioError) as refused:
        _ids(tmp_path, text)
    (problem,) = refused.value.problems
    assert problem.endswith(
        "methods.lora-r8: two cells are called llama-2-7b/lora-r8/b1-s512; "
        "rename a model or a method (they differ in method.name, method.dropout)."
    )


def _cell(folder: Path, text: str) -> Cell:
    path = folder / "s.toml"
    path.write_text(_HEAD + text, encoding="utf-8")
    return load_scenario(path).cells[0]


def test_labels_are_the_parts_of_the_id(tmp_path: Path) -> None:
    """Model, method and window as the id names them; a foreign id is answered from the fields."""
    cell = _cell(tmp_path, "[methods.lora]\nrank = 64")
    assert cell.labels == ("llama-2-7b", "lora-r64", "b1-s512")
    assert cell.labels.method == "lora-r64"
    assert cell.model_copy(update={"id": "other"}).labels == ("llama-2-7b", "lora", "b1-s512")


@pytest.mark.parametrize(
    ("other", "ignore", "alike"),
    [
        ("[methods.lora]\nrank = 64", (), False),
        ("[methods.lora]\nrank = 64", ("method.rank",), True),
        ("[methods.qlora]", ("method.rank",), False),
        ("[methods.qlora]", ("method",), True),
        ("[methods.lora]\n[training]\nlearning_rate = 0.3", (), False),
        ("[methods.lora]\n[training]\nlearning_rate = 0.3", HOW_IT_LEARNS, True),
        ("[methods.lora]\n[training]\nseed = 7", HOW_IT_LEARNS, False),
        ('[methods.lora]\n[training]\noptimizer = "sgd"', HOW_IT_LEARNS, False),
        ('[methods.lora]\n[training]\noptimizer = "sgd"', ("training.optimizer",), True),
        ("[methods.lora]\n[window]\nledger = false", EXTRA_READINGS, True),
        ('device = "cuda"\n[methods.lora]', ("method", "training"), False),
        ("[methods.lora]\n[limits]\ntimeout_s = 1.0", (), True),
    ],
)
def test_cells_are_alike_but_for_what_is_ignored(
    tmp_path: Path, other: str, ignore: tuple[str, ...], *, alike: bool
) -> None:
    """The comparison key leaves out the parts and fields it is told to, and never the device."""
    head, second = ("", other) if not other.startswith("device") else tuple(other.split("\n"))
    path = tmp_path / "other.toml"
    path.write_text(f"{head}\n{_HEAD}\n{second}", encoding="utf-8")
    cell = load_scenario(path).cells[0]
    ours = _cell(tmp_path, "[methods.lora]").comparison_key(ignore)
    assert (cell.comparison_key(ignore) == ours) is alike


def test_an_id_that_was_shortened_is_the_id_of_a_cell_read_back(tmp_path: Path) -> None:
    """A digest's mark is no stranger's character: a worker reads the cell as it was expanded."""
    (tmp_path / "s.toml").write_text(
        f"{_HEAD}[methods.lora]\ntarget_modules = [{[f'layer_{number}_proj' for number in range(9)]}]\n"
    )
    (cell,) = load_scenario(tmp_path / "s.toml").cells
    assert "~" in cell.id
    assert cell == Cell.model_validate_json(cell.model_dump_json())
