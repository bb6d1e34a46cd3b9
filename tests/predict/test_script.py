"""An unchanged script predicted for the CPU, without weights, against its real run: equal to the byte."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers.modeling_utils import PreTrainedModel

from bench.predict.script.predict import predict_script
from bench.records.predictions import Prediction
from bench.scenario.platform import Platform
from script_models import EXAMPLES, real_ledger, save_tiny_llama

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the scripts' and their libraries', whatever they are
    pytest.mark.filterwarnings("error:coroutine"),
]
CPU = Platform(device="cpu")
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "sentences")


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    """Take back what a script asks of fp32 products, which holds for the process."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return a tiny model's folder with weights, and one without."""
    folder = tmp_path_factory.mktemp("models")
    with_weights = save_tiny_llama(folder / "whole", weights=True)
    return with_weights, save_tiny_llama(folder / "bare", weights=False)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_script_takes_what_is_predicted(
    name: str, folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every peak, phase and category of the third and fourth step are those of the real run."""
    if name in {"sft_packing", "dpo"}:
        pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    script = str(EXAMPLES / f"{name}.py")
    real = real_ledger([script, folders[0], "64", "4"])
    cell, answer = predict_script([script, folders[1], "64", "4"], CPU, None, steps=2)
    assert isinstance(answer, Prediction), answer
    assert cell is not None
    assert cell.training.micro_batch >= 4
    accumulated = 2 if name in {"accelerate_loop", "lora_trainer", "qlora_trainer"} else 1
    assert cell.training.gradient_accumulation == accumulated
    assert answer.allocated_peak_bytes == real.peak_bytes
    assert answer.phase_peaks_bytes == real.phase_peaks_bytes
    assert answer.categories_at_peak_bytes == real.categories_at_peak_bytes
    assert (answer.peak_phase, answer.peak_op) == (real.peak_phase, real.peak_op)
    assert ("script-left-out" in {caveat.code for caveat in answer.caveats}) == (name == "compiled")


def test_there_are_twelve_readable_examples() -> None:
    """Each is short enough to be read at a glance."""
    assert len(NAMES) == 12
    for name in NAMES:
        assert len((EXAMPLES / f"{name}.py").read_text("utf-8").splitlines()) <= 40


def test_everything_is_undone(folders: tuple[str, str]) -> None:
    """After a prediction torch and transformers are what they were."""
    before = [dict(vars(owner)) for owner in (torch, torch.Tensor, torch.cuda, PreTrainedModel)]
    predict_script([str(EXAMPLES / "plain.py"), folders[1], "64", "4"], CPU, None, steps=1)
    after = [dict(vars(owner)) for owner in (torch, torch.Tensor, torch.cuda, PreTrainedModel)]
    for one, other in zip(before, after, strict=True):
        assert one.keys() == other.keys()
        assert [name for name in one if one[name] is not other[name] and one[name] != other[name]] == []
