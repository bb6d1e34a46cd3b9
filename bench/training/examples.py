"""Examples to train on: rows read and checked one by one, and the templates that make text of them.

Rows come from a built-in task, a local file of JSON lines or a data set on the hub; a mistake names the file
and the line, and never repeats its content. Text only: no torch, no tokens, so that data can be checked
before anything heavy is imported. A template is named in the scenario; none is chosen by guessing.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import UnavailableError, UsageError, first_line
from bench.scenario.types import DataSpec, HubData, JsonlData, ScriptData, TaskData
from bench.training.tasks import task_items

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
_ROWS_CHECKED = 100  # before anything is loaded
TemplateName = Literal["alpaca", "chat", "plain"]
FormatName = Literal["alpaca", "dolly", "chat", "text", "preference"]

# The two prompts of Stanford Alpaca's train.py (github.com/tatsu-lab/stanford_alpaca), to the letter.
ALPACA_PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:"
)
ALPACA_PROMPT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


class _Fields(BaseModel):
    """The fields a row must have; data sets carry others, which are not used."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class DollyRow(_Fields):
    """An instruction as Databricks Dolly stores it."""

    instruction: str
    context: str = ""
    response: str


class AlpacaRow(DollyRow):
    """An instruction as Stanford Alpaca stores it: the same under other names."""

    context: str = Field("", alias="input")
    response: str = Field(alias="output")


class Message(_Fields):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatRow(_Fields):
    """A conversation."""

    messages: list[Message] = Field(min_length=1)


class TextRow(_Fields):
    """Plain text."""

    text: str = Field(min_length=1)


class PreferenceRow(_Fields):
    """A prompt with the better and the worse of two answers."""

    prompt: str
    chosen: str
    rejected: str


Row = AlpacaRow | DollyRow | ChatRow | TextRow | PreferenceRow
ROWS: dict[FormatName, type[Row]] = {
    "alpaca": AlpacaRow,
    "dolly": DollyRow,
    "chat": ChatRow,
    "text": TextRow,
    "preference": PreferenceRow,
}


@dataclass(frozen=True)
class Segment:
    """A stretch of text, and whether the loss is taken over its tokens."""

    text: str
    trained: bool


@dataclass(frozen=True, kw_only=True)
class Example:
    """The segments of one example, in order.

    ``special_tokens``: the tokenizer adds what it adds by itself (False: the text has it already).
    ``append_end``: an end-of-sequence token follows, trained, so that the model learns to stop.
    """

    segments: tuple[Segment, ...]
    special_tokens: bool = True
    append_end: bool = True

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(segment.text for segment in self.segments)


def _answered(prompt: str, answer: str, *, append_end: bool = True) -> Example:
    return Example(
        segments=(Segment(prompt, trained=False), Segment(answer, trained=True)), append_end=append_end
    )


def alpaca_template(row: Row, _tokenizer: Any) -> Example:
    """Write Stanford Alpaca's prompt, then the response."""
    if not isinstance(row, DollyRow):
        raise UsageError(
            "Template alpaca needs rows with an instruction; set data.format to alpaca or dolly."
        )
    prompt = ALPACA_PROMPT_WITH_INPUT if row.context else ALPACA_PROMPT
    return _answered(prompt.format(instruction=row.instruction, context=row.context), row.response)


def plain_template(row: Row, _tokenizer: Any) -> Example:
    """Take text as it is; of an instruction its parts, a line each, the last of which is the completion."""
    match row:
        case TextRow():
            return Example(segments=(Segment(row.text, trained=True),))
        case DollyRow():
            prompt = "".join(f"{part}\n" for part in (row.instruction, row.context) if part)
            return _answered(prompt, row.response)
        case PreferenceRow():
            raise UsageError("Rows of two answers are for loop.driver trl-dpo; set data.format to alpaca.")
        case ChatRow():
            raise UsageError("Template plain has no roles for a conversation; set data.template to chat.")


def chat_template(row: Row, tokenizer: Any) -> Example:
    """Apply the tokenizer's own chat template; every assistant turn is a completion.

    Raises ``UsageError`` if the tokenizer has none or it rewrites earlier turns, for then the end of
    a prompt cannot be known.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError("The model's tokenizer has no chat template; set data.template to alpaca or plain.")
    match row:
        case ChatRow():
            messages = [message.model_dump() for message in row.messages]
        case DollyRow():
            request = "\n\n".join(part for part in (row.instruction, row.context) if part)
            answer = {"role": "assistant", "content": row.response}
            messages = [{"role": "user", "content": request}, answer]
        case TextRow() | PreferenceRow():
            raise UsageError("Template chat needs turns, and text has none; set data.template to plain.")
    render = partial(tokenizer.apply_chat_template, tokenize=False)
    segments = []
    done = ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt: str = render(messages[:index], add_generation_prompt=True)
        turn: str = render(messages[: index + 1], add_generation_prompt=False)
        if not (prompt.startswith(done) and turn.startswith(prompt)):
            raise UsageError(
                "The tokenizer's chat template rewrites earlier turns, so the end of a prompt is unknown; "
                "set data.template to alpaca or plain."
            )
        segments += [Segment(prompt[len(done) :], trained=False), Segment(turn[len(prompt) :], trained=True)]
        done = turn
    if not segments:
        raise UsageError("A conversation has no assistant turn to train on; remove it from the data.")
    return Example(segments=tuple(segments), special_tokens=False, append_end=False)


TEMPLATES: dict[TemplateName, Callable[[Row, Any], Example]] = {
    "alpaca": alpaca_template,
    "chat": chat_template,
    "plain": plain_template,
}


def load_examples(data: TaskData | JsonlData | HubData | ScriptData, tokenizer: Any) -> list[Example]:
    """Return the data's training examples, in its own order.

    Raises ``UsageError`` for data that is wrong or empty, ``UnavailableError`` if the hub cannot be reached.
    """
    if isinstance(data, ScriptData):
        raise UsageError("what a watched script feeds its model is the script's; run bench watch again")
    if isinstance(data, TaskData):
        items = task_items(data.task, data.difficulty, "train", data.train_items)
        # They end with the answer, where the evaluation stops reading: no end token is added.
        examples = [_answered(item.prompt, item.completion, append_end=False) for item in items]
    else:
        rows = read_jsonl(data) if isinstance(data, JsonlData) else read_hub(data)
        examples = [TEMPLATES[data.template](row, tokenizer) for row in rows]
    if data.train_on == "all":
        return [replace(example, segments=(Segment(example.text, trained=True),)) for example in examples]
    return examples


def load_pairs(data: TaskData | JsonlData | HubData | ScriptData) -> list[Example]:
    """Return the data's preferences in its own order: the chosen answer to a prompt, then the rejected one.

    Of a built-in task the rejected answer is the wrong option after the right one. Raises what
    ``load_examples`` raises.
    """
    if isinstance(data, ScriptData):
        raise UsageError("what a watched script feeds its model is the script's; run bench watch again")
    if isinstance(data, TaskData):
        items = task_items(data.task, data.difficulty, "train", data.train_items)
        answers = [(item.prompt, answer) for item in items for answer in (item.completion, item.wrong)]
        return [_answered(prompt, answer, append_end=False) for prompt, answer in answers]
    rows = read_jsonl(data) if isinstance(data, JsonlData) else read_hub(data)
    pairs = [row for row in rows if isinstance(row, PreferenceRow)]  # a cell's check allows no other
    return [_answered(row.prompt, answer) for row in pairs for answer in (row.chosen, row.rejected)]


def check_data(data: DataSpec) -> str | None:
    """Return what can be seen at once to be wrong with data: the file, its first rows, the id of a hub's.

    Nothing is downloaded and no tokenizer needed; None where nothing is wrong so far.
    """
    try:
        if isinstance(data, JsonlData):
            most = min(data.max_items or _ROWS_CHECKED, _ROWS_CHECKED)
            read_jsonl(data.model_copy(update={"max_items": most}))
        elif isinstance(data, HubData):
            _require_hub_id(data.dataset)
    except UsageError as error:
        return str(error)
    return None


def read_jsonl(data: JsonlData) -> list[Row]:
    """Read and check a local file of JSON lines; blank lines are passed over."""
    rows = []
    try:
        with Path(data.path).open(encoding="utf-8") as lines:
            numbered = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
            for number, line in islice(numbered, data.max_items):
                where = f"{data.path}, line {number}"
                try:
                    fields = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UsageError(f"{where}: not a JSON object; give one object per line.") from error
                rows.append(_checked(fields, data.format, where))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(f"Cannot read the data file {data.path} ({reason}); correct data.path.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The data file {data.path} is not UTF-8 text; convert it.") from error
    if not rows:
        raise UsageError(f"The data file {data.path} holds no rows; give one JSON object per line.")
    return rows


def _require_hub_id(name: str) -> None:
    if not _HUB_ID.fullmatch(name) or Path(name).exists():
        raise UsageError(
            f"{name!r} is not the id of a data set on the hub; give owner/name, or use source jsonl."
        )


def read_hub(data: HubData) -> list[Row]:
    """Download (or take from the cache) a hub data set and check its rows.

    Only data files are read: a local path is refused, since the datasets library would take a script there.
    """
    _require_hub_id(data.dataset)
    import datasets

    split = data.split if data.max_items is None else f"{data.split}[:{data.max_items}]"
    try:
        table = datasets.load_dataset(data.dataset, name=data.config, split=split, revision=data.revision)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise UnavailableError(
            f"The data set {data.dataset} cannot be fetched ({first_line(error)}); connect this machine "
            "to the hub once so that it is cached, or use source jsonl with a local copy."
        ) from error
    except ValueError as error:  # what the library raises for an unknown configuration or split
        raise UsageError(
            f"The data set {data.dataset} cannot be read ({first_line(error)}); "
            "correct data.config or data.split."
        ) from error
    rows = [_checked(fields, data.format, f"{data.dataset}, row {n}") for n, fields in enumerate(table)]
    if not rows:
        raise UsageError(f"The data set {data.dataset} holds no rows in split {data.split}; choose another.")
    return rows


def _checked(fields: object, row_format: FormatName, where: str) -> Row:
    try:
        return ROWS[row_format].model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the row"
        raise UsageError(
            f"{where}: {key}: {first['msg']}; correct it, or data.format (now {row_format})."
        ) from error
