"""What a gate runs: the library's own function, on the model and the batches that bench loads."""

from typing import Any

from mylibrary import finetune


def loop(model: Any, data: Any) -> None:
    """Train as the library does; bench ends it after the scenario's steps."""
    finetune(model, (batch.inputs_on(model.device) for step in data.steps for batch in step))
