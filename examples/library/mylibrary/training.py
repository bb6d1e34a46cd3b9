"""The training function that the library's users call; nothing in it knows of bench."""

from collections.abc import Iterable
from typing import Any

import torch


def finetune(model: Any, batches: Iterable[dict[str, torch.Tensor]], lr: float = 1e-3) -> None:
    """Take a step of AdamW on each batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for batch in batches:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
