"""The loss of causal models as older versions of transformers compute it: it copies the shifted logits.

Nothing is changed for the version that is installed, nor for any from 4.49 on.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

from torch import Tensor

from bench.scenario.platforms import Platform, version_of

PADS_LABELS = (4, 49)
"""Version from which labels are padded in the place of cutting logits (transformers loss/loss_utils.py)."""

_OWN_LOSS = {
    "gpt2": "GPT2LMHeadModel",
    "gpt_bigcode": "GPTBigCodeForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "falcon": "FalconForCausalLM",
}
"""Models whose forward() before 4.49 held a cross-entropy in the dtype of the logits, no copy in fp32."""


@contextmanager
def staged_loss(platform: Platform) -> Iterator[None]:
    """Use the loss of the platform's version of transformers while a ``with`` block runs."""
    version = version_of(platform.transformers)
    with ExitStack() as stack:
        if platform.device == "cuda" and version < PADS_LABELS:
            from transformers.loss.loss_utils import LOSS_MAPPING

            stack.enter_context(patch.dict(LOSS_MAPPING, ForCausalLM=_shifting_loss))
            for name, head in _OWN_LOSS.items():
                module = import_module(f"transformers.models.{name}.modeling_{name}")
                own = property(lambda _model: _shifting_loss_as_given)
                stack.enter_context(patch.object(getattr(module, head), "loss_function", own))
        yield


def _shifting_loss(logits: Tensor, labels: Tensor, vocab_size: int, **kwargs: Any) -> Tensor:
    """Copy the logits to fp32, then all but each row's last (4.48's ForCausalLMLoss)."""
    return _shifting_loss_as_given(logits.float(), labels, vocab_size, **kwargs)


def _shifting_loss_as_given(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int,
    num_items_in_batch: int | None = None,
    ignore_index: int = -100,
    **_kwargs: Any,
) -> Tensor:
    """Copy all but each row's last, in the dtype they have."""
    from transformers.loss.loss_utils import fixed_cross_entropy

    shifted = logits[..., :-1, :].contiguous().view(-1, vocab_size)
    targets = labels[..., 1:].contiguous().view(-1)
    loss: Tensor = fixed_cross_entropy(shifted, targets, num_items_in_batch, ignore_index)
    return loss
