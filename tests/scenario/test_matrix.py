"""Expansion: every model with every method, overrides over the top, lists into cells."""

from pathlib import Path

from bench.scenario.cell import Cell
from bench.scenario.load import load_scenario
from bench.scenario.types import HubData, TaskData


def _cells(folder: Path, text: str) -> dict[str, Cell]:
    path = folder / "s.toml"
    path.write_text(text, encoding="utf-8")
    return {cell.id: cell for cell in load_scenario(path).cells}


def test_every_model_meets_every_method_and_every_list(tmp_path: Path) -> None:
    """The matrix is the product of models, methods and lists, a method's own lists counting for it alone."""
    text = """
[models.a]
random = "tiny-llama-test"
[models.b]
random = "gpt2"
[methods.full]
[methods.lora]
rank = [8, 16]
[data]
source = "synthetic"
[training]
micro_batch = [1, 2, 4]
"""
    cells = _cells(tmp_path, text)
    assert len(cells) == 2 * (1 + 2) * 3
    assert list(cells)[:4] == ["a/full/b1-s512", "a/full/b2-s512", "a/full/b4-s512", "a/lora-r8/b1-s512"]
    assert cells["b/lora-r16/b4-s512"].model.random == "gpt2"


def test_method_overrides_model_overrides_top(tmp_path: Path) -> None:
    """The nearest table wins key by key; a list may give way to a value and the other way round."""
    text = """
device = "cuda"
[models.a]
hub = "x/a"
training = { seed = 1, dtype = "fp32" }
limits.timeout_s = 5
[models.b]
hub = "x/b"
[methods.full]
training.seed = 2
[methods.lora]
training.learning_rate = [1e-3, 1e-4]
window.measured_steps = 3
[data]
source = "synthetic"
[training]
seed = 0
dtype = "bf16"
learning_rate = 1e-5
"""
    cells = _cells(tmp_path, text)
    assert len(cells) == 2 + 4
    full = cells["a/full/b1-s512-fp32"]
    assert (full.training.seed, full.training.dtype, full.limits.timeout_s) == (2, "fp32", 5)
    lora = cells["a/lora-r8/b1-s512-fp32-learning_rate=0.001"]
    assert (lora.training.seed, lora.training.learning_rate, lora.window.measured_steps) == (1, 1e-3, 3)
    other = cells["b/full/b1-s512"]
    assert (other.training.seed, other.training.dtype, other.training.learning_rate) == (2, "bf16", 1e-5)
    assert {cell.device for cell in cells.values()} == {"cuda"}


def test_method_may_train_on_other_data(tmp_path: Path) -> None:
    """A method's own data goes over the top's, and replaces it where the source is another."""
    text = """
[models.a]
hub = "x/a"
[methods.full]
data.difficulty = "hard"
[methods.lora]
data = { source = "hub", dataset = "x/y" }
[data]
source = "task"
task = "longest-word"
"""
    cells = _cells(tmp_path, text)
    assert cells["a/full/b1-s512"].data == TaskData(task="longest-word", difficulty="hard")
    assert cells["a/lora-r8/b1-s512"].data == HubData(source="hub", dataset="x/y")


def test_kind_is_the_name_where_it_is_one(tmp_path: Path) -> None:
    """[methods.qlora] needs no kind; another name does, and a name may be given another kind."""
    text = """
[models.a]
hub = "x/a"
[methods.qlora]
[methods.dora]
kind = "lora"
peft.use_dora = true
[methods.full]
kind = "lora"
[data]
source = "synthetic"
"""
    cells = _cells(tmp_path, text)
    assert {name: cell.method.kind for name, cell in cells.items()} == {
        "a/qlora-nf4-dq-r8/b1-s512": "qlora",
        "a/dora-r8/b1-s512": "lora",
        "a/full-r8/b1-s512": "lora",
    }
    assert cells["a/dora-r8/b1-s512"].method.model_dump()["peft"] == {"use_dora": True}
