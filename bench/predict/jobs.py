"""Predictions as a worker's job. Errors leave as exceptions; the worker's frame classifies them."""

from bench.predict.allocator.settings import AllocatorSettings
from bench.predict.predict import predict_all
from bench.probes.phases import Send
from bench.records.messages import PlanJob, PredictionMade
from bench.scenario.types import Cell
from bench.training.jobs import quiet_libraries


def run_plan(job: PlanJob, send: Send) -> None:
    """Predict every cell of the job, sending each answer as it is known."""
    quiet_libraries()
    cells = [Cell.model_validate_json(text) for text in job.cells_json]
    for cell, answer in predict_all(cells, job.platform, AllocatorSettings.parse(job.allocator)):
        send(PredictionMade(cell_id=cell.id, answer=answer))
