"""lm-eval on a model in training: right per item, cheap, and without a trace on what follows."""

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bitsandbytes
import numpy as np
import pytest
import torch
from lm_eval.models import huggingface
from peft import LoraConfig, get_peft_model
from torch import distributed, nn
from torch.distributed import FileStore  # type: ignore[attr-defined]  # documented, not exported
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerFast

from bench.errors import UnavailableError, UsageError
from bench.records.readings import Caveat
from bench.records.records import EvaluationReading
from bench.scenario.types import DataSpec, EvaluationSpec, TaskData, TrainingSpec
from bench.training import evaluation as evaluation_module
from bench.training.evaluation import evaluate, read_text_loss
from bench.training.loading.models import keep_quantised_weights
from bench.training.rows.data import prepare_batches
from bench.training.rows.tasks import WORDS, task_items
from word_model import SYMBOLS, tiny_model, word_tokenizer

# peft 0.21 asks transformers 5.23 for what it is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TASK = TaskData(task="longest-word", held_out_items=40)


@pytest.fixture(scope="module", name="tokenizer")
def _tokenizer() -> Any:
    return word_tokenizer()


def lora(model: Any, **settings: Any) -> Any:
    """Wrap a model in adapters that already change its output."""
    torch.manual_seed(1)
    return get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **settings)
    )


def quantised(make_layer: Any) -> Any:
    """Put bitsandbytes layers in the place of the linear layers of a tiny model."""
    model = tiny_model()
    for module in list(model.model.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                layer = make_layer(child.in_features, child.out_features)
                layer.load_state_dict(child.state_dict())
                setattr(module, name, layer)
    keep_quantised_weights(model)
    return model.to("cpu")


def nf4_layer(inputs: int, outputs: int) -> nn.Module:
    """Make a linear layer whose weight becomes NF4."""
    layer: nn.Module = bitsandbytes.nn.Linear4bit(
        inputs, outputs, bias=False, quant_type="nf4", compress_statistics=True
    )
    return layer


def int8_layer(inputs: int, outputs: int) -> nn.Module:
    """Make a linear layer whose weight becomes int8."""
    layer: nn.Module = bitsandbytes.nn.Linear8bitLt(inputs, outputs, bias=False, has_fp16_weights=False)
    return layer


def held_out(
    model: Any,
    tokenizer: Any,
    data: DataSpec = TASK,
    max_length: int = 64,
    **spec: Any,
) -> tuple[EvaluationReading, list[Caveat]]:
    """Evaluate on the held-out items."""
    (reading,), caveats = evaluate(
        model, tokenizer, EvaluationSpec(tasks=("held-out",), **spec), data, "before", max_length
    )
    return reading, caveats


def test_the_loss_on_a_text_is_the_models_own_window_by_window(tokenizer: Any, tmp_path: Path) -> None:
    """The mean of what the model gives as the loss of each window, by tokens; rows count by their answers."""
    model, words = tiny_model(), WORDS[:90]
    (tmp_path / "general.txt").write_text(" ".join(words))
    loss, tokens = read_text_loss(model, tokenizer, str(tmp_path / "general.txt"), 64)
    expected = 0.0
    for part in (words[:64], words[64:]):
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(list(part))])
        expected += float(model.eval()(ids, labels=ids).loss.detach()) * (len(part) - 1)
    assert tokens == 88
    assert loss == pytest.approx(expected / 88, rel=1e-5)
    rows = [{"prompt": f"{words[0]} {words[1]}", "completion": f" {words[2]}"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_text_loss(model, tokenizer, str(tmp_path / "rows.jsonl"), 64)[1] == 2  # the word and the end
    assert read_text_loss(model, tokenizer, "mmlu-281", 64)[1] >= 10_000
    (tmp_path / "general.txt").write_text(words[0])
    with pytest.raises(UsageError, match=r"general\.txt has no token to predict; name a longer text"):
        read_text_loss(model, tokenizer, str(tmp_path / "general.txt"), 64)


def test_items_are_judged_by_the_likeliest_choice(tokenizer: Any) -> None:
    """Each item is correct exactly if the right word has the highest logit after the prompt."""
    model = tiny_model()
    expected = []
    for item in task_items("longest-word", "easy", "held-out", 40):
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(item.prompt)["input_ids"]])).logits[0, -1]
        choices = logits[tokenizer.convert_tokens_to_ids(list(item.choices))]
        expected.append(int(choices.argmax()) == item.answer)
    reading, caveats = held_out(model, tokenizer)

    assert expected == [item.correct for item in reading.items]
    assert {True, False} == set(expected)
    assert list(range(40)) == [item.doc_id for item in reading.items]
    assert ("held-out", "before", "acc", 0, 0) == (
        reading.task,
        reading.when,
        reading.metric,
        reading.num_fewshot,
        reading.truncated_items,
    )
    assert re.fullmatch(r"lm-eval \d.*", reading.instrument)
    assert [] == caveats


def test_the_four_choices_of_an_item_share_one_forward_pass(tokenizer: Any) -> None:
    """Choices of one token each cost a row an item, not four."""
    model = tiny_model()
    rows = []
    model.register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0].shape[0]))
    held_out(model, tokenizer, batch_size=16)

    assert rows == [16, 16, 8]


def test_items_are_the_same_in_every_run_and_under_a_limit(tokenizer: Any) -> None:
    """Ids and hashes agree, so that two runs can be compared item by item."""
    whole, _ = held_out(tiny_model(), tokenizer)
    limited, _ = held_out(lora(tiny_model()), tokenizer, limit=10)

    assert [item.doc_hash for item in whole.items[:10]] == [item.doc_hash for item in limited.items]
    assert 40 == len({item.doc_hash for item in whole.items})


@pytest.mark.parametrize(
    "make_model",
    [
        lambda: lora(tiny_model()),
        lambda: quantised(nf4_layer),
        lambda: quantised(int8_layer),
        lambda: lora(quantised(nf4_layer)),
    ],
    ids=["lora", "nf4", "int8", "lora-on-nf4"],
)
def test_adapters_and_quantised_models_evaluate(make_model: Any, tokenizer: Any) -> None:
    """Every kind of model gives a verdict on every item and is left in training mode."""
    model = make_model()
    reading, _ = held_out(model, tokenizer)

    assert 40 == len(reading.items)
    assert all(module.training for module in model.modules())


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # what is tested
def test_nothing_of_the_model_or_tokenizer_is_changed(tokenizer: Any) -> None:
    """Mixed training flags, the cache setting, the padding and every parameter are as before."""
    model = lora(tiny_model(), modules_to_save=["lm_head"])
    model.base_model.model.model.layers[0].eval()
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=SYMBOLS[2])
    parameters = {name: (id(value), value.detach().clone()) for name, value in model.named_parameters()}
    flags = [module.training for module in model.modules()]
    held_out(model, bare)

    assert flags == [module.training for module in model.modules()]
    assert {True, False} == set(flags)
    assert model.config.use_cache is True
    assert (None, "right") == (bare.pad_token_id, bare.padding_side)
    assert list(parameters) == [name for name, _ in model.named_parameters()]
    for name, value in model.named_parameters():
        identity, content = parameters[name]
        assert (identity, True) == (id(value), torch.equal(content, value))
    assert "tie_weights" not in vars(model)


def test_a_sharded_model_holds_no_weight_whole_afterwards(tokenizer: Any, tmp_path: Path) -> None:
    """The root's stay gathered from a forward pass to a backward pass, which no evaluation has."""
    text = tmp_path / "text.txt"
    text.write_text("Words Longest " * 20)
    model = tiny_model()
    before = read_text_loss(model, tokenizer, str(text), 8)
    distributed.init_process_group("gloo", store=FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        assert before == read_text_loss(model, tokenizer, str(text), 8)
        assert {DTensor} == {type(parameter.data) for parameter in model.parameters()}
    finally:
        distributed.destroy_process_group()


def test_four_bit_weights_are_not_repacked(tokenizer: Any) -> None:
    """The layout for inference on a CPU would let no gradient through in training."""
    model = quantised(nf4_layer)
    weight = model.model.layers[0].mlp.up_proj.weight
    packed, scales = weight.data.clone(), weight.quant_state.absmax.clone()
    held_out(model, tokenizer)

    assert not getattr(weight.quant_state, "packing_format_for_cpu", False)
    assert weight.quant_state.nested
    assert torch.equal(packed, weight.data)
    assert torch.equal(scales, weight.quant_state.absmax)


def random_states() -> tuple[object, ...]:
    """Return the global states of Python, NumPy and torch."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 - the global one is meant
    return random.getstate(), str(numpy_state), torch.get_rng_state().tolist()


def test_random_states_are_put_back(tokenizer: Any) -> None:
    """Python, NumPy and torch draw next what they would have drawn."""
    model = tiny_model()
    before = random_states()
    held_out(model, tokenizer, num_fewshot=1)

    assert before == random_states()


@pytest.mark.parametrize(
    "make_model",
    [
        tiny_model,
        lambda: lora(quantised(int8_layer), lora_dropout=0.3),
        lambda: lora(quantised(nf4_layer), lora_dropout=0.3),
    ],
    ids=["full", "lora-on-int8", "lora-on-nf4"],
)
def test_the_loss_curve_does_not_depend_on_evaluation(make_model: Any, tokenizer: Any) -> None:
    """With and without an evaluation before, and one between, every loss is the same to the bit."""
    assert loss_curve(make_model(), tokenizer, evaluations=()) == loss_curve(
        make_model(), tokenizer, evaluations=(0, 2)
    )


def loss_curve(model: Any, tokenizer: Any, evaluations: Sequence[int]) -> list[float]:
    """Train a few steps, evaluating before those that are named."""
    prepared = prepare_batches(TASK, TrainingSpec(micro_batch=4), tokenizer, len(SYMBOLS), 4)
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    torch.manual_seed(5)
    losses = []
    for index, (batch,) in enumerate(prepared.steps):
        if index in evaluations:
            held_out(model, tokenizer, limit=8)
        loss = model(**batch.inputs_on("cpu"), use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_training_raises_held_out_accuracy(tokenizer: Any) -> None:
    """What the data teaches is what the evaluation asks: labels and choices meet in the same token."""
    model = tiny_model()
    data = TASK.model_copy(update={"train_items": 1024})
    before, _ = held_out(model, tokenizer, data)
    prepared = prepare_batches(data, TrainingSpec(micro_batch=64), tokenizer, len(SYMBOLS), 120)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for (batch,) in prepared.steps:
        model(**batch.inputs_on("cpu"), use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after, _ = held_out(model, tokenizer, data)

    assert sum(item.correct for item in after.items) >= sum(item.correct for item in before.items) + 12


def test_truncation_is_counted_and_said(tokenizer: Any) -> None:
    """Each held-out prompt has 11 tokens: room for 11 cuts none, room for 10 all of them."""
    _, none = held_out(tiny_model(), tokenizer, max_length=11)
    reading, caveats = held_out(tiny_model(), tokenizer, max_length=10)

    assert [] == none
    assert 40 == reading.truncated_items
    assert ["evaluation-truncated"] == [caveat.code for caveat in caveats]
    assert caveats[0].message.startswith("40 of 40 items of held-out are longer than the context")


def test_mmlu_runs_from_the_installed_package(tokenizer: Any) -> None:
    """lm-eval asks the first of its own questions."""
    (reading,), _ = evaluate(
        tiny_model(), tokenizer, EvaluationSpec(tasks=("mmlu-281",), limit=5), TASK, "after", 2048
    )

    assert ("mmlu-281", "after", 5) == (reading.task, reading.when, len(reading.items))


def test_few_shot_examples_come_before_the_question(tokenizer: Any) -> None:
    """Three training items stand before each held-out one, in one longer prompt."""
    model = tiny_model()
    widths = []
    model.register_forward_hook(lambda _module, inputs, _output: widths.append(inputs[0].shape[1]))
    reading, _ = held_out(model, tokenizer, num_fewshot=3, limit=2)

    assert 3 == reading.num_fewshot
    assert [11 + 3 * 12] == widths


def test_nothing_is_printed(tokenizer: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Progress bars and log lines would drown what a worker has to say."""
    held_out(tiny_model(), tokenizer)

    assert ("", "") == capfd.readouterr()


def test_how_far_an_evaluation_is_is_told_meanwhile(tokenizer: Any) -> None:
    """Of each task the requests done, from none to all; then lm-eval has its own progress bar again."""
    bar, told = huggingface.tqdm, list[tuple[str, int, int]]()
    spec = EvaluationSpec(tasks=("held-out", "mmlu-281"), limit=5, batch_size=1)

    evaluate(tiny_model(), tokenizer, spec, TASK, "before", 64, lambda *one: told.append(one))

    for name, choices in (("held-out", 4), ("mmlu-281", 4)):
        said = [one[1:] for one in told if one[0] == name]
        assert sorted(said) == said
        assert ((0, 5 * choices), (5 * choices, 5 * choices)) == (said[0], said[-1])
        assert len(set(said)) >= 5
    assert huggingface.tqdm is bar


def test_a_task_without_right_and_wrong_is_refused(
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A perplexity has no accuracy per item."""
    monkeypatch.setattr(evaluation_module, "_METRICS", ("exact_match",))

    with pytest.raises(UnavailableError, match=r"held-out has no right-or-wrong per item \(it has acc\)"):
        held_out(tiny_model(), tokenizer, limit=1)
