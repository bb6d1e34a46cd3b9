"""The loss of one forward pass: the model's own, in chunks, or by Liger's fused kernel.

All but the first let the model run up to its output layer and apply that themselves, so they refuse models
that do anything else to what the output layer returns. ``chunked`` and ``liger`` hold the logits of one chunk
at a time; ``chunked-logits``, litgpt's, keeps those of all chunks for the backward pass.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bench.errors import UnavailableError, not_installed
from bench.scenario.types import TrainingSpec
from bench.training.rows.data import IGNORED_LABEL

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class FusedOutputs:
    """What is left of a forward pass that made no logits."""

    loss: torch.Tensor


def forward_pass(model: nn.Module, inputs: Inputs, training: TrainingSpec) -> object:
    """Run the model on its keyword arguments, ``labels`` (not shifted) among them; return its outputs.

    The outputs hold logits: as long as a caller has a name for them, these stay in memory. ``loss_of``
    gives their loss.
    Raises ``UnavailableError`` where this model or this machine cannot compute ``training.loss``.
    """
    outputs: Any
    match training.loss:
        case "full":  # transformers' own outputs, their loss computed over an fp32 copy of all logits
            outputs = model(**inputs, use_cache=training.use_cache)
        case "chunked":
            outputs = _chunked(model, inputs, training.loss_chunk_tokens)
        case "chunked-logits":
            # The logits of some positions of all rows at a time, as the output layer gives them.
            # Source: lm_head_chunk_size in litgpt's model.py (https://github.com/Lightning-AI/litgpt).
            head, hidden = _before_output_layer(model, inputs)
            outputs = [head(part) for part in hidden.split(training.loss_chunk_tokens, dim=1)]
        case "liger":
            outputs = _liger(model, inputs)
    if training.upcast_outputs:
        from accelerate.utils import convert_to_fp32

        outputs = convert_to_fp32(outputs)
    return outputs


def loss_of(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean loss over loss-bearing tokens."""
    loss: torch.Tensor = _loss_of_chunks(outputs, labels) if isinstance(outputs, list) else outputs.loss
    return loss


def _chunked(model: nn.Module, inputs: Inputs, chunk_tokens: int) -> FusedOutputs:
    """Return the loss of so many positions of all rows at a time; the backward pass makes logits anew.

    As torchtune's and trl's losses in chunks, none of which keeps logits: of each chunk only its sum is kept.
    """
    head, hidden = _before_output_layer(model, inputs)
    targets = _next_tokens(inputs["labels"], hidden.shape[1])
    parts = zip(hidden.split(chunk_tokens, dim=1), targets.split(chunk_tokens, dim=1), strict=True)
    sums = [checkpoint(_summed_loss, head, *part, use_reentrant=False) for part in parts]
    return FusedOutputs(torch.stack(sums).sum() / (targets != IGNORED_LABEL).sum())


def _summed_loss(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of one chunk in fp32, as transformers computes that of all logits."""
    logits = head(hidden).flatten(0, 1).float()
    return nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED_LABEL, reduction="sum")


def _loss_of_chunks(chunks: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy, a chunk at a time and in its dtype; autocast makes that fp32.

    Source: chunked_cross_entropy in litgpt's utils.py, and finetune/lora.py, which first cuts off the last
    position, for which there is no next token: of more rows than one that takes a copy of the last chunk.
    """
    targets = _next_tokens(labels, sum(chunk.shape[1] for chunk in chunks))[:, :-1]
    length = chunks[0].shape[1]
    chunks[-1] = chunks[-1][:, :-1]
    parts = [chunk.reshape(-1, chunk.shape[-1]) for chunk in chunks]
    losses = [
        nn.functional.cross_entropy(part, own.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
        for part, own in zip(parts, targets.split(length, dim=1), strict=False)  # the last may be empty
    ]
    return torch.cat(losses).sum(dtype=torch.float32) / (targets != IGNORED_LABEL).sum()


def _liger(model: nn.Module, inputs: Inputs) -> FusedOutputs:
    """Return the loss of Liger's fused kernel; there are no logits to keep."""
    head, hidden = _before_output_layer(model, inputs)
    wrapped: Any = model
    if type(head) is not nn.Linear or head.bias is not None:
        raise UnavailableError(
            f"loss liger needs an output layer that is a plain linear layer without bias, and "
            f"{wrapped.config.model_type} has {type(head).__name__}; set training.loss to chunked or full."
        )
    return FusedOutputs(liger_loss(hidden, head.weight, _next_tokens(inputs["labels"], hidden.shape[1])))


def liger_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of ``hidden @ weight.T``; ``targets`` are shifted already.

    Shapes: hidden [batch, positions, width], weight [vocabulary, width], targets [batch, positions].
    What the kernel allocates (Liger-Kernel's ops/fused_linear_cross_entropy.py, by default settings), with
    BT = batch times positions, H = width, V = vocabulary:

    - at first, zeros like hidden [BT, H]; if the weight is trained, zeros like it [V, H], in its dtype;
      the losses [BT] in fp32;
    - then for each chunk of next_power_of_2(⌈BT / ⌈V / H⌉⌉) tokens: logits [chunk, V] in the dtype of
      the product, which become their own gradient in place; its product with the weight [chunk, H]; if
      the weight is trained, [V, H] in that dtype and an fp32 copy of that, added to the sum and dropped;
    - both gradients, already complete in the forward pass, are saved for the backward pass, which scales
      them in place; the weight's has the weight's dtype.

    Raises ``UnavailableError`` if the package liger_kernel is missing.
    """
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError as error:
        instead = "training.loss to chunked"
        raise UnavailableError(not_installed("loss liger", "liger-kernel", instead)) from error
    fused = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED_LABEL)
    loss: torch.Tensor = fused(weight, hidden.flatten(0, 1), targets.flatten())
    return loss


def _before_output_layer(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, torch.Tensor]:
    """Run the model with its output layer put aside; return that layer and what would enter it.

    That nothing else happens to logits (no softcap, no scale, no router loss) is seen, not looked up: what
    the put-aside layer hands through must leave the model as the very same tensor.
    """
    wrapped: Any = model
    head = wrapped.get_output_embeddings()
    entered: list[torch.Tensor] = []

    def hand_through(hidden: torch.Tensor) -> torch.Tensor:
        entered.append(hidden)
        return hidden

    if head is not None:
        own = vars(head).get("forward")
        head.forward = hand_through
        try:
            unlabelled = {name: tensor for name, tensor in inputs.items() if name != "labels"}
            outputs = model(**unlabelled, use_cache=False)
        finally:
            del head.forward
            if own is not None:
                head.forward = own
        plain = len(entered) == 1 and outputs.logits is entered[0]
        if plain and getattr(outputs, "aux_loss", None) is None:
            return head, outputs.logits
    raise UnavailableError(
        f"the loss of {wrapped.config.model_type} is more than the cross-entropy of its output layer (scaled "
        "or capped logits, or a router's loss); set training.loss to full."
    )


def _next_tokens(labels: torch.Tensor, positions: int) -> torch.Tensor:
    """Return the label that each of the model's positions predicts; the last one predicts none.

    Methods that learn a prompt put its positions, which bear no loss, before the first token.
    """
    learned = positions - labels.shape[1]
    return nn.functional.pad(labels, (learned, 1), value=IGNORED_LABEL)[:, 1:]
