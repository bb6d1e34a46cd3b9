"""The libraries' trainers as loops: transformers' Trainer, trl's SFTTrainer and DPOTrainer, as a cell says.

Arguments that a scenario has a name for come from there, the others are the libraries' own defaults or the
scenario's ``loop.args``. Nothing is saved, reported or shown. A micro-batch of preferences has twice the
rows: the chosen answers to its prompts, then the rejected ones to the same prompts.
"""

import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch

from bench.errors import UnavailableError, UsageError, not_installed, one_line
from bench.scenario.cell import Cell
from bench.scenario.parallel import ParallelSpec
from bench.training.rows.data import IGNORED_LABEL, Batch, PreparedData
from bench.training.step import optimizer_class

Collate = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a loop is given beside model and data.

    ``steps``: optimizer steps to take; the loop is ended from inside the last one. ``collate`` wraps the
    function that makes a batch of rows, so that the ledger knows the batch as inputs. ``beside`` is told of
    a model that the loop keeps beside the one it trains, so that the ledger knows its weights.
    """

    steps: int
    collate: Callable[[Collate], Collate]
    beside: Callable[[Any], None]


Drive = Callable[[Cell, Any, Any, PreparedData, Hooks], None]


def hf_trainer(cell: Cell, model: Any, _tokenizer: Any, data: PreparedData, hooks: Hooks) -> None:
    """Train with transformers' Trainer, on rows that are padded or packed already."""
    from transformers import Trainer, TrainingArguments, default_data_collator

    rows = [row for step in data.steps for batch in step for row in rows_of(batch)]
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=model,
            args=_arguments(TrainingArguments, cell, folder, hooks.steps),
            train_dataset=[rows[index] for index in _dealt(len(rows), cell)],
            data_collator=hooks.collate(default_data_collator),
            optimizer_cls_and_kwargs=optimizer_class(cell.training),
        ).train()


def trl_sft(cell: Cell, model: Any, tokenizer: Any, data: PreparedData, hooks: Hooks) -> None:
    """Train with trl's SFTTrainer, whose own collator pads the rows, or joins those that are packed.

    Raises ``UnavailableError`` where trl is not installed.
    """
    from datasets import Dataset

    trl = _trl(cell)
    packed = cell.training.batching == "pack"
    more: dict[str, Any] = {"packing": packed, "max_length": cell.training.sequence_length}
    more["dataset_kwargs"] = {"skip_prepare_dataset": True}  # rows are tokens already, cut and in order
    more["shuffle_dataset"] = False
    if cell.training.batching == "pad-to-length":
        more["pad_to_multiple_of"] = cell.training.sequence_length
    rows = [row for step in data.steps for batch in step for row in _unpadded_rows(batch)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.SFTTrainer(
            model=model,
            args=_arguments(trl.SFTConfig, cell, folder, hooks.steps, more),
            train_dataset=Dataset.from_list(rows).select(_dealt(len(rows), cell)),
            processing_class=tokenizer,
            optimizer_cls_and_kwargs=optimizer_class(cell.training),
        )
        trainer.data_collator = hooks.collate(trainer.data_collator)
        trainer.train()


def trl_dpo(cell: Cell, model: Any, tokenizer: Any, data: PreparedData, hooks: Hooks) -> None:
    """Train with trl's DPOTrainer on pairs of answers that are tokens already.

    The reference of an adapter is its base, with the adapter switched off, as where trl makes the adapter
    itself: the copy that it makes of one which it is given is taken away again. The reference of full
    fine-tuning is a second model. Raises ``UnavailableError`` where trl is not installed.
    """
    from datasets import Dataset

    trl = _trl(cell)
    more: dict[str, Any] = {"max_length": cell.training.sequence_length}
    more["disable_dropout"] = not getattr(cell.method, "dropout", 0.0)
    if cell.training.batching == "pad-to-length":
        more["pad_to_multiple_of"] = cell.training.sequence_length
    reference = second_copy(model) if cell.method.kind == "full" else None
    rows = [row for step in data.steps for batch in step for row in _pairs_of(batch)]
    with tempfile.TemporaryDirectory() as folder:
        as_given = patch.object(trl.DPOTrainer, "_prepare_dataset", lambda _trainer, dataset, *_: dataset)
        with as_given, torch.device(model.device):
            trainer = trl.DPOTrainer(
                model=model,
                ref_model=reference,
                args=_arguments(trl.DPOConfig, cell, folder, hooks.steps, more),
                train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer,
            )
        if reference is None:
            model.delete_adapter("ref")
        else:
            hooks.beside(trainer.ref_model)
        trainer.optimizer_cls_and_kwargs = optimizer_class(cell.training)
        trainer.data_collator = hooks.collate(trainer.data_collator)
        trainer.train()


def _trl(cell: Cell) -> Any:
    try:
        return import_module("trl")
    except ImportError as error:
        raise UnavailableError(not_installed(f"Loop {cell.loop.driver}", "trl")) from error


def second_copy(model: Any) -> Any:
    """Return a model like this one with the same weights, on the same device, without its hooks."""
    with torch.device(model.device):
        copy = type(model)._from_config(deepcopy(model.config), dtype=model.dtype)  # noqa: SLF001 - has no public name
    copy.load_state_dict(model.state_dict())
    return copy


TRAINERS: dict[str, Drive] = {"hf-trainer": hf_trainer, "trl-sft": trl_sft, "trl-dpo": trl_dpo}
"""The loops of libraries, by the names that a scenario gives them."""


def _arguments(
    kind: Callable[..., Any], cell: Cell, folder: str, steps: int, more: dict[str, Any] | None = None
) -> Any:
    """Build the arguments of a trainer. Raises ``UsageError`` for some that it does not know or allow."""
    training, several = cell.training, cell.parallel.several
    if cell.device == "cuda" and not several and (count := torch.cuda.device_count()) > 1:
        raise UnavailableError(
            f"Loop {cell.loop.driver} would train on all {count} GPUs that it sees, and one is measured; set "
            "CUDA_VISIBLE_DEVICES to one of them."
        )
    # Its new name is not in transformers 5.0.
    new, old = "activation_checkpointing", "gradient_checkpointing"
    checkpointing = new if new in getattr(kind, "__dataclass_fields__", {}) else old
    own = {
        "output_dir": folder,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        "use_cpu": cell.device == "cpu",
        "seed": training.seed,
        "max_steps": steps,
        "per_device_train_batch_size": training.micro_batch,
        "gradient_accumulation_steps": training.gradient_accumulation,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "lr_scheduler_type": "constant_with_warmup" if training.schedule == "constant" else training.schedule,
        "warmup_steps": training.schedule_warmup_steps,
        "max_grad_norm": training.max_grad_norm,
        "bf16": training.autocast == "bf16",
        "fp16": training.autocast == "fp16",
        checkpointing: training.gradient_checkpointing != "off",
        f"{checkpointing}_kwargs": {"use_reentrant": training.gradient_checkpointing == "reentrant"},
        "torch_empty_cache_steps": training.empty_cache_steps or None,
        **_sharding(cell.parallel),
        **(more or {}),
    }
    taken = sorted(own.keys() & cell.loop.args.keys())
    if taken:
        raise UsageError(f"loop.args may not hold {', '.join(taken)}: the scenario or bench sets it.")
    try:
        return kind(**own, **cell.loop.args)
    except (TypeError, ValueError, ImportError) as error:
        name = getattr(kind, "__name__", "the trainer")
        raise UsageError(f"loop.args of {cell.id}: {name} refuses them: {one_line(error)}.") from error


def _sharding(parallel: ParallelSpec) -> dict[str, Any]:
    """Return what a trainer is told of FSDP2, which accelerate then does: its dtypes follow from ``bf16``."""
    if not parallel.sharded:
        return {}
    config: dict[str, Any] = {"version": 2, "reshard_after_forward": parallel.reshard_after_forward}
    if parallel.wrap:
        config["transformer_layer_cls_to_wrap"] = list(parallel.wrap)
    return {"fsdp": True, "fsdp_config": config}


def _dealt(rows: int, cell: Cell) -> list[int]:
    """Return the places of rows with each micro-batch once for every rank: its own rows are all it has.

    accelerate's loader deals micro-batches out to the ranks in turn (BatchSamplerShard in data_loader.py).
    """
    places, size = range(rows), cell.training.micro_batch
    batches = [places[begin : begin + size] for begin in range(0, rows, size)]
    return [place for batch in batches for _ in range(cell.parallel.gpus) for place in batch]


def rows_of(batch: Batch) -> Iterator[dict[str, Any]]:
    """Yield the rows of a micro-batch as a collator that only stacks wants them: CPU int64 [positions]."""
    inputs = batch.inputs_on("cpu")
    for index in range(len(batch.input_ids)):
        yield {name: tensor[index] for name, tensor in inputs.items()}


def _pairs_of(batch: Batch) -> Iterator[dict[str, list[int]]]:
    """Yield the pairs of a micro-batch: the prompt, and what the two rows hold from their first label on."""
    rows = list(_unpadded_rows(batch))
    half = len(rows) // 2
    for chosen, rejected in zip(rows[:half], rows[half:], strict=True):
        begin, other = (
            next(place for place, label in enumerate(row["labels"]) if label != IGNORED_LABEL)
            for row in (chosen, rejected)
        )
        yield {
            "prompt_ids": chosen["input_ids"][:begin],
            "chosen_ids": chosen["input_ids"][begin:],
            "rejected_ids": rejected["input_ids"][other:],
        }


def _unpadded_rows(batch: Batch) -> Iterator[dict[str, list[int]]]:
    """Yield token ids and labels without padding, and of packed rows the lengths of their sequences."""
    for row in rows_of(batch):
        kept = row["attention_mask"].bool() if "attention_mask" in row else slice(None)
        plain = {name: row[name][kept].tolist() for name in ("input_ids", "labels")}
        if "position_ids" in row:
            starts = (row["position_ids"] == 0).nonzero().flatten().tolist()
            ends = [*starts[1:], len(plain["input_ids"])]
            plain["seq_lengths"] = [end - start for start, end in zip(starts, ends, strict=True)]
        yield plain
