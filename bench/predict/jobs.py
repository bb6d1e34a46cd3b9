"""Predictions as a worker's job. A server that forks such workers imports this module once, for all of them.

Nothing that evaluates or reads data is imported. Errors leave as exceptions; the worker's frame classifies
them.
"""

from unittest.mock import patch

import torch

with patch.object(torch, "compile", lambda function=None, **_options: function or (lambda given: given)):
    # What bitsandbytes wraps for the compiler runs in no prediction, and the compiler takes long to import.
    import bitsandbytes  # noqa: F401 - imported for its cost

import peft  # noqa: F401 - the same
import transformers.models.llama.modeling_llama  # noqa: F401 - the family most scenarios name

from bench.predict.allocator.settings import AllocatorSettings
from bench.predict.predict import predict_all
from bench.records.messages import PlanJob, PredictionMade, Send
from bench.scenario.cell import Cell
from bench.training.jobs import quiet_libraries


def run_plan(job: PlanJob, send: Send) -> None:
    """Predict every cell of the job, sending each answer as it is known."""
    quiet_libraries()
    cells = [Cell.model_validate_json(text) for text in job.cells_json]
    settings = AllocatorSettings.parse(job.allocator)
    for cell, answer in predict_all(cells, job.platform, settings, reuse_ranges=job.reuse_ranges):
        send(PredictionMade(cell_id=cell.id, answer=answer))
