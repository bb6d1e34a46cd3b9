"""lm-eval before and after training, on the very model that trains, item by item.

Of several ranks each answers all questions, in step with the others, whose shards it needs.

Evaluation leaves no trace: training flags, configuration, tokenizer and random states are put back. A task's
name is never taken as a path, since a YAML file can name code to run.
"""

import contextlib
import hashlib
import io
import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import cache, partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from msgspec import UNSET
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import cross_entropy

from bench.errors import UnavailableError, UsageError, first_line
from bench.io import read_data
from bench.records.readings import Caveat
from bench.records.records import EvaluationItem, EvaluationReading
from bench.scenario.types import GENERAL_TEXT, DataSpec, EvaluationSpec, JsonlData
from bench.training.rows.data import IGNORED_LABEL, tokenise
from bench.training.rows.examples import load_examples
from bench.training.rows.own_rows import task_of_rows, trained_too
from bench.training.rows.tasks import held_out_task, mmlu_questions, mmlu_task

# Per-item metrics that are 0 or 1, the first that a task has is used.
_METRICS = ("acc", "exact_match", "em", "pass@1", "prompt_level_strict_acc")
_SOURCE_FIELDS = ("passage", "context", "article", "story", "paragraph", "support", "abstract")
"""What several questions may ask about, as tasks of lm-eval 0.4.13 call it (doc_to_text): boolq and drop,
xquad and logiqa, race, coqa, multirc, sciq, qasper."""
_TEXT_TOKENS = 16_384  # after which a text is long enough
_TEXT_WINDOW = 512
_FEWSHOT_SEED = 1234  # lm-eval's own default
_DEFAULT_NEW_TOKENS = 256  # HFLM.max_gen_toks, which shortens the room for a prompt


def evaluate(  # noqa: PLR0917 - one call says all there is to say
    model: Any,
    tokenizer: Any,
    evaluation: EvaluationSpec,
    data: DataSpec,
    when: Literal["before", "after"],
    max_length: int,
    tell: Callable[[str, int, int], None] = lambda _task, _done, _total: None,
) -> tuple[list[EvaluationReading], list[Caveat]]:
    """Return a reading for each task (each subtask of a group), and what a reader must know.

    ``max_length`` is the model's context in tokens; lm-eval cuts longer prompts from the left. ``tell`` hears
    now and then of which task how many requests are done, of how many.
    Raises ``UsageError`` for an unknown task, ``UnavailableError`` for one whose data cannot be had.
    """
    from lm_eval.models import huggingface

    readings = []
    with _undisturbed(model, tokenizer):
        language_model = huggingface.HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=evaluation.batch_size,
            max_length=max_length,
        )
        for name in evaluation.tasks:
            with _telling(partial(tell, name), evaluation.batch_size):
                readings += _evaluate_task(language_model, name, evaluation, data, when)
    caveats = [
        Caveat(
            code="evaluation-truncated",
            message=f"{reading.truncated_items} of {len(reading.items)} items of {reading.task} are longer "
            f"than the context and were cut from the left ({reading.when} training).",
        )
        for reading in readings
        if reading.truncated_items
    ]
    if isinstance(data, JsonlData) and when == "before":
        repeated, rows = trained_too(data, tokenizer)
        message = f"{repeated} of {rows} held-out rows are also trained on: of new rows they say nothing."
        caveats += [Caveat(code="held-out-trained", message=message)] if repeated else []
    return readings, caveats


def read_text_loss(model: Any, tokenizer: Any, text: str, max_length: int) -> tuple[float, int]:
    """Return the mean loss on the beginning of a text or of rows, in nats a token, and its number of tokens.

    Of rows the answers count, as in training. Raises ``UsageError`` where nothing can be predicted.
    """
    total, tokens = 0.0, 0
    with _undisturbed(model, tokenizer), torch.no_grad():
        model.eval()
        for ids, labels in _read_alone(text, tokenizer, min(max_length, _TEXT_WINDOW)):
            rows, wanted = (torch.tensor([each], device=model.device) for each in (ids, labels))
            logits = model(input_ids=rows).logits[0, :-1].float()
            total += float(cross_entropy(logits, wanted[0, 1:], ignore_index=IGNORED_LABEL, reduction="sum"))
            tokens += int((wanted[0, 1:] != IGNORED_LABEL).sum())
            if tokens >= _TEXT_TOKENS:
                break
    if not tokens:
        raise UsageError(f"evaluation.text: {text} has no token to predict; name a longer text.")
    return total / tokens, tokens


def _read_alone(text: str, tokenizer: Any, length: int) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Yield ids and labels of each row, or of each window of one text."""
    if Path(text).suffix in {".json", ".jsonl"}:
        rows = load_examples(JsonlData(source="jsonl", path=text), tokenizer).examples
        yield from ((piece.ids[:length], piece.labels[:length]) for piece in tokenise(rows, tokenizer))
        return
    if text == GENERAL_TEXT:
        content = "\n\n".join(
            "\n".join([one["question"], *one["choices"], one["choices"][one["answer"]]])
            for one in mmlu_questions()
        )
    else:
        content = read_data(Path(text)).decode(errors="replace")
    ids = tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]
    for start in range(0, len(ids), length):
        yield ids[start : start + length], ids[start : start + length]


def _evaluate_task(
    language_model: Any,
    name: str,
    evaluation: EvaluationSpec,
    data: DataSpec,
    when: Literal["before", "after"],
) -> list[EvaluationReading]:
    """Run one task through ``lm_eval.evaluate``.

    Not ``simple_evaluate``: that wraps it in new random seeds and a report of the environment for
    which it starts pip, git and more on each call.
    """
    import lm_eval

    started = time.perf_counter_ns()
    loaded = load_tasks(name, data, language_model.tokenizer)
    for task in loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=evaluation.num_fewshot)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    try:
        results = lm_eval.evaluate(
            language_model, loaded, limit=evaluation.limit, bootstrap_iters=0, log_samples=True
        )
    except ValueError as error:
        if "unsafe" in str(error):
            raise UnavailableError(
                f"lm-eval task {name} runs code that the model writes; choose another task."
            ) from error
        raise
    duration_ns = time.perf_counter_ns() - started
    return [
        EvaluationReading(
            task=task,
            when=when,
            instrument=f"lm-eval {version('lm_eval')}",
            num_fewshot=evaluation.num_fewshot,
            duration_ns=duration_ns // len(results["samples"]),  # of a group, an equal share each
            **_judged(language_model, task, samples),
        )
        for task, samples in results["samples"].items()
    ]


def _judged(language_model: Any, task: str, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Keep of each sample whether it was right, and count the prompts that were cut.

    Where lm-eval reads an answer through several filters, the task's first one counts.
    """
    first_filter = samples[0]["filter"]
    kept = [sample for sample in samples if sample["filter"] == first_filter]
    metric = next((name for name in _METRICS if name in kept[0]["metrics"]), None)
    if metric is None:
        raise UnavailableError(
            f"lm-eval task {task} has no right-or-wrong per item (it has {', '.join(kept[0]['metrics'])}); "
            "choose a task with accuracy or exact match."
        )
    return {
        "metric": metric if first_filter == "none" else f"{metric},{first_filter}",
        "items": tuple(
            EvaluationItem(
                doc_id=sample["doc_id"], doc_hash=_asked(sample), correct=float(sample[metric]) == 1.0
            )
            for sample in kept
        ),
        "sources": _sources(kept) or UNSET,
        "truncated_items": sum(_is_truncated(language_model, sample) for sample in kept),
    }


def _asked(sample: dict[str, Any]) -> str:
    """Return a digest of an item and of how it was put: prompt, choices, and the answer that counts.

    lm-eval's own is of the data alone, which a task's other templates leave as they are.
    """
    asked = sample["doc_hash"], sample["arguments"], sample["target"]
    return hashlib.sha256(repr(asked).encode(errors="replace")).hexdigest()


def _sources(samples: list[dict[str, Any]]) -> tuple[int, ...]:
    """Return a number for what each question asks about, by its text; nothing where no two share it."""
    numbers: dict[object, int] = {}
    for field in _SOURCE_FIELDS:
        texts = [sample["doc"].get(field) for sample in samples]
        if all(isinstance(text, str) for text in texts):
            found = tuple(
                numbers.setdefault(text.strip() or ("", place), len(numbers))
                for place, text in enumerate(texts)
            )
            return found if len(numbers) < len(found) else ()
    return ()


def _is_truncated(language_model: Any, sample: dict[str, Any]) -> bool:
    """Say whether lm-eval cut any prompt of an item, by the rules of its ``HFLM``."""
    for context, *rest in sample["arguments"]:
        match rest:
            case [str() as continuation]:
                encoded = language_model._encode_pair(context or " ", continuation)  # noqa: SLF001 - its own count
                room = language_model.max_length + 1  # the last token is predicted, not read
            case [dict() as settings]:
                encoded = (language_model.tok_encode(context),)
                room = language_model.max_length - settings.get("max_gen_toks", _DEFAULT_NEW_TOKENS)
            case _:  # rolling likelihood moves a window instead
                continue
        if sum(map(len, encoded)) > room:
            return True
    return False


@contextlib.contextmanager
def _telling(tell: Callable[[int, int], None], batch: int) -> Iterator[None]:
    """Have lm-eval's progress bar say how far it is where it would draw itself, once for each batch."""
    from lm_eval.models import huggingface

    drawn = huggingface.tqdm

    def telling(*rest: Any, **named: Any) -> Any:
        bar = drawn(*rest, mininterval=0, miniters=batch, **named)
        bar.display = lambda **_shown: tell(bar.n, bar.total)
        bar.refresh()
        return bar

    huggingface.tqdm = telling
    try:
        yield
    finally:
        huggingface.tqdm = drawn


@contextlib.contextmanager
def _undisturbed(model: Any, tokenizer: Any) -> Iterator[None]:
    """Put back what evaluating changes, so that training goes on as if it had not been.

    A model that is sharded holds some weights whole after a forward pass, until a backward pass.
    lm-eval's progress bars and log lines, which go to stderr, are kept out of the worker's output.
    """
    config = model.config.get_text_config()
    kept = [(config, "use_cache"), (tokenizer, "padding_side"), (tokenizer, "pad_token_id")]
    kept += [(module, "training") for module in model.modules()]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with contextlib.ExitStack() as stack:
        for owner, name in kept:
            stack.callback(setattr, owner, name, getattr(owner, name))
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002 - the global one is what libraries draw from
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        for logger in map(logging.getLogger, ("lm_eval", "transformers", "datasets")):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        config.use_cache = False  # one pass per prompt: keys and values would be kept for nothing
        # HFLM ties weights anew, which would undo an adapter's own copy of the output layer.
        model.tie_weights = lambda: None
        stack.callback(delattr, model, "tie_weights")
        for module in model.modules():
            if isinstance(module, FSDPModule):
                stack.callback(module.reshard)
        yield


def load_tasks(name: str, data: DataSpec, tokenizer: Any = None) -> Any:
    """Return what lm-eval's ``TaskManager.load`` does for one task, group or tag.

    Raises ``UsageError`` for a name it does not know, ``UnavailableError`` if the task's data or a
    library it needs is not there.
    """
    from lm_eval.tasks import TaskManager

    own = {
        "held-out": lambda: (
            task_of_rows(data, tokenizer) if isinstance(data, JsonlData) else held_out_task(data)
        ),
        "mmlu-281": mmlu_task,
    }
    if name in own:
        return TaskManager(include_defaults=False).load([own[name]()])
    path = find_task_file(name)
    try:
        if path is not None:
            return TaskManager(include_defaults=False).load([str(path)])
        manager = _whole_index()
        if name in manager.all_tasks:
            return manager.load([name])
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"lm-eval task {name} needs the Python module {error.name}; install it or choose another task."
        ) from error
    except OSError as error:  # what the hub's client and the datasets library raise when offline
        raise UnavailableError(
            f"The data of lm-eval task {name} cannot be fetched ({first_line(error)}); connect this machine "
            "to the hub once so that it is cached, or use held-out or mmlu-281, which need no network."
        ) from error
    near = get_close_matches(name, [*manager.all_tasks, *own], n=1)
    hint = f"perhaps you meant {near[0]}" if near else "`lm_eval ls tasks` lists them"
    raise UsageError(f"lm-eval has no task named {name!r}; {hint}.")


@cache
def find_task_file(name: str) -> Path | None:
    """Return the YAML file in lm-eval's package that defines a single task of this name, if one does.

    lm-eval parses its 14,000 YAML files to find one name (16 s); a text search takes half a second. Groups
    and tags may lie anywhere and take lm-eval's own index.
    """
    line = re.compile(
        rb"""^["']?task["']?[ \t]*:[ \t]*(["']?)%s\1[ \t]*(?:\#.*)?$""" % re.escape(name.encode()),
        re.MULTILINE,
    )
    folder = Path(str(files("lm_eval"))) / "tasks"
    candidates = sorted(folder.rglob("*.yaml"), key=Path.as_posix)  # lm-eval's order: the first one counts
    return next((path for path in candidates if line.search(read_data(path))), None)


@cache
def _whole_index() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()
