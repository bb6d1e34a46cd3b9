"""The scenario for a real card, tried on a virtual one: run, recorded, and shown beside its predictions."""

from pathlib import Path

from bench.commands.material import read_material, render_material
from bench.records.predictions import Prediction
from bench.scenario.load import load_scenario
from bench.scenario.types import EvaluationSpec, ModelSpec
from virtual_gpu import VirtualGpus
from virtual_training import PEAKS_BYTES, sweep_on_virtual_gpu

SCENARIO = Path(__file__).parents[2] / "scenarios" / "gpu_truth.toml"
TRIED = ("full", "qlora", "int8", "qlora-checkpointing-paged", "full-out-of-memory")


def test_the_page_sets_predictions_against_the_card(tmp_path: Path, tiny_weights: Path) -> None:
    """Toy cells in 16, 8 and 4 bits, with pages, and out of memory: what each takes, predicted and read."""
    del tiny_weights  # only its variable is needed
    cells = [
        cell.model_copy(
            update={
                "model": ModelSpec(name="tiny", random="tiny-llama-test"),
                "training": cell.training.model_copy(update={"sequence_length": 256}),
                "evaluation": EvaluationSpec(tasks=()),
            }
        )
        for cell in load_scenario(SCENARIO).cells
        if cell.model.name == "llama-3.2-1b" and cell.method.name in TRIED
    ]
    (tmp_path / "library").mkdir()
    gpus = VirtualGpus(tmp_path / "library")
    with gpus.box() as box:
        run = box._pool.submit(
            sweep_on_virtual_gpu, gpus, tmp_path / "results", "process", cells=cells, predict=True
        )
        records = run.result(timeout=300)
    ends = [(record.cell.method.name, record.outcome) for record in records]
    assert ends == [(one, "oom" if one.endswith("memory") else "ok") for one in TRIED]
    assert len(list((tmp_path / "results").glob("*.json"))) == len(TRIED)
    *done, out = records
    assert out.failure is not None
    assert (out.failure.phase, out.failure.requested_bytes) == ("first_forward", 501 * 1024**3)
    assert "lower micro_batch" in out.failure.message
    for record in done:
        assert isinstance(record.prediction, Prediction)
        assert {"load", "forward", "backward"} <= record.prediction.first_peaks_bytes.keys()
        gpu = record.measurement.gpu
        assert gpu is not None
        assert PEAKS_BYTES.items() <= {phase.name: phase.process_peak_bytes for phase in gpu.phases}.items()
    page = render_material(read_material([tmp_path / "results"]))
    for title in (
        "Peak memory, predicted and read",
        "Tensors in each phase of the first step, predicted and read",
        "lower micro_batch",
    ):
        assert title in page
