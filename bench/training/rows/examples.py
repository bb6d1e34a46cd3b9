"""Examples to train on: the templates that make text of rows, and which of it is trained.

Text only: no torch, no tokens, so that data can be checked before anything heavy is imported.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from bench.errors import UsageError, counted, first_line
from bench.scenario.types import (
    DataSpec,
    DataTemplate,
    HubData,
    JsonlData,
    RowTemplate,
    ScriptData,
    TaskData,
    Turns,
)
from bench.training.rows.row_layouts import (
    Answer,
    Chat,
    Instruction,
    LeftOutError,
    Preference,
    Row,
    Text,
    shared_beginning,
    turns_of,
)
from bench.training.rows.rows import Rows, read_rows, require_hub_id, told
from bench.training.rows.tasks import task_items

_WHOLE_UP_TO = 32 * 1024**2  # bytes: files that are read whole before anything is loaded
_ROWS_CHECKED = 1000  # of larger ones
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template of github.com/openai/openai-python/blob/v0.27.0/chatml.md, for tokenizers without one."""

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
        return "".join(segment.text for segment in self.segments)


@dataclass
class Loaded:
    """Examples in the data's order (of pairs the chosen, then the rejected answer), and notes by code."""

    examples: list[Example] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


def _answered(prompt: str, answer: str, *, append_end: bool = True) -> Example:
    return Example(
        segments=(Segment(prompt, trained=False), Segment(answer, trained=True)), append_end=append_end
    )


def alpaca_template(row: Instruction, _tokenizer: Any, _turns: Turns = "each") -> list[Example]:
    """Write Stanford Alpaca's prompt, then the response."""
    prompt = ALPACA_PROMPT_WITH_INPUT if row.context else ALPACA_PROMPT
    return [_answered(prompt.format(instruction=row.instruction, context=row.context), row.response)]


def plain_template(
    row: Text | Answer | Instruction, _tokenizer: Any, _turns: Turns = "each"
) -> list[Example]:
    """Take text as it is; of an instruction its parts, a line each, the last of which is the completion."""
    match row:
        case Text():
            return [Example(segments=(Segment(row.text, trained=True),))]
        case Answer():
            return [_answered(row.prompt, row.completion)]
        case Instruction():
            prompt = "".join(f"{part}\n" for part in (row.instruction, row.context) if part)
            return [_answered(prompt, row.response)]


def chat_template(
    row: Chat | Instruction | Answer, tokenizer: Any, turns: Turns = "each", template: str | None = None
) -> list[Example]:
    """Apply a chat template, the tokenizer's own unless one is given, and train on turns of the assistant.

    Each is shown as the template shows it when it is answered. Where that stays as it is in later turns,
    they are one example; where the template rewrites it (Qwen3's drops earlier reasoning) each has its own.
    """
    if template is None and not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "The model's tokenizer has no chat template; set data.template to chatml, or choose a model that "
            "has one."
        )
    chat = row if isinstance(row, Chat) else Chat(turns_of(row))
    given = {"tools": chat.tools, "chat_template": template}
    render = partial(
        tokenizer.apply_chat_template,
        tokenize=False,
        **{name: value for name, value in given.items() if value is not None},
    )
    examples: list[list[Segment]] = []
    done = ""
    for prompt, turn in list(_answers(chat, render))[-1 if turns == "last" else 0 :]:
        if not (examples and prompt.startswith(done)):
            examples.append([])
            done = ""
        examples[-1] += [
            Segment(prompt[len(done) :], trained=False),
            Segment(turn[len(prompt) :], trained=True),
        ]
        done = turn
    return [
        Example(segments=tuple(segments), special_tokens=False, append_end=False) for segments in examples
    ]


def _answers(chat: Chat, render: Callable[..., str]) -> Iterator[tuple[str, str]]:
    """Yield of each turn of the assistant that is trained what stands before it, and that with the turn."""
    for index, message in enumerate(chat.messages):
        if message["role"] != "assistant" or index < chat.first:
            continue
        before = chat.messages[:index]
        try:
            turn = render(chat.messages[: index + 1], add_generation_prompt=False)
            prompt = render(before, add_generation_prompt=True)
            # A prompt may open what the answer then does not show, such as reasoning that is dropped.
            if not turn.startswith(prompt):
                asked = render(before, add_generation_prompt=False) if before else ""
                prompt = shared_beginning(prompt, turn)
                if len(prompt) < len(asked):
                    raise LeftOutError("whose question the chat template rewrites once it is answered")
        except (TemplateError, TypeError, ValueError, RecursionError) as error:
            raise LeftOutError(f"that the chat template refuses: {first_line(error)}") from None
        said = message["content"].rpartition("</think>")[2].strip()
        if said not in turn[len(prompt) :]:
            raise LeftOutError("whose answer the chat template does not show")
        for call in message.get("tool_calls", ()):
            if call.get("function", call)["name"] not in turn[len(prompt) :]:
                raise LeftOutError("whose tool calls the chat template does not show")
        yield prompt, turn


TEMPLATES: dict[RowTemplate, tuple[tuple[type[Row], ...], Callable[..., list[Example]]]] = {
    "alpaca": ((Instruction,), alpaca_template),
    "chat": ((Chat, Instruction, Answer), chat_template),
    "chatml": ((Chat, Instruction, Answer), partial(chat_template, template=CHATML)),
    "plain": ((Text, Answer, Instruction), plain_template),
}
"""By name the rows that a template can show, and how it does."""


def template_of(rows: Sequence[Row], named: DataTemplate) -> RowTemplate:
    """Return the template that the scenario names, or the usual one; all rows of a source have the same."""
    if named != "auto":
        return named
    flat = [row.chosen if isinstance(row, Preference) else row for row in rows]
    if any(isinstance(row, Chat) for row in flat):
        return "chat"
    return "alpaca" if any(isinstance(row, Instruction) for row in flat) else "plain"


def load_examples(
    data: TaskData | JsonlData | HubData | ScriptData, tokenizer: Any, *, pairs: bool = False
) -> Loaded:
    """Return the data's training examples; of ``pairs`` the chosen answer to a prompt, then the rejected one.

    Of a built-in task the rejected answer is the wrong option after the right one. Raises ``UsageError`` for
    data that is wrong or empty, ``UnavailableError`` if the hub cannot be reached.
    """
    if isinstance(data, ScriptData):
        raise UsageError("what a watched script feeds its model is the script's; run bench watch again")
    if isinstance(data, TaskData):
        items = task_items(data.task, data.difficulty, "train", data.train_items)
        answers = [(item, text) for item in items for text in (item.completion, item.wrong)[: 1 + pairs]]
        # They end with the answer, where the evaluation stops reading: no end token is added.
        loaded = Loaded([_answered(item.prompt, text, append_end=False) for item, text in answers])
    else:
        loaded = _rendered(read_rows(data, pairs=pairs), data, tokenizer)
    if data.train_on == "all":
        whole = [replace(one, segments=(Segment(one.text, trained=True),)) for one in loaded.examples]
        loaded = replace(loaded, examples=whole)
    return loaded


def _rendered(rows: Rows, data: JsonlData | HubData, tokenizer: Any) -> Loaded:
    """Return the examples of rows, and in notes what they were read as and what is not trained."""
    name = template_of([row for _, row in rows.rows], data.template)
    # Where all text is trained, the last rendering of a conversation holds it.
    turns: Turns = "last" if data.train_on == "all" else data.turns
    examples: list[Example] = []
    kept: list[tuple[int, Row]] = []
    left_out = {why: [*lines] for why, lines in rows.left_out.items()}
    apart = later = 0
    for line, row in rows.rows:
        try:
            found = _shown(row, name, tokenizer, turns)
        except LeftOutError as error:
            left_out.setdefault(str(error), []).append(line)
            continue
        except UsageError as error:
            raise UsageError(f"{rows.name}, line {line}: {error}") from None
        examples += found
        kept.append((line, row))
        if isinstance(row, Chat):
            apart, later = apart + (len(found) > 1), later + len(found) * (len(found) > 1)
    if not examples:
        raise UsageError(f"{rows.name}: no row can be trained on: {told(left_out)}.")
    notes = {}
    if left_out or data.format == "auto":
        notes["data-read"] = (
            f"{replace(rows, rows=kept, left_out=left_out).summary()}; shown by template {name}."
        )
    if apart:
        notes["turns-apart"] = (
            f"The chat template rewrites earlier turns, so {counted(apart, 'conversation')} became {later} "
            'examples, each up to a turn of the assistant; data.turns = "last" trains on the last one alone.'
        )
    chats = any(isinstance(row, Chat) for _, row in kept)
    if chats and data.turns == "last" and data.train_on != "all":
        notes["last-turn-only"] = (
            "Of each conversation the assistant's last turn alone is trained (data.turns)."
        )
    if name == "chatml" and "<|im_start|>" not in tokenizer.get_vocab():
        notes["chatml-as-text"] = "The tokenizer has no token <|im_start|>, so it is spelt out in several."
    return Loaded(examples, notes)


def _shown(row: Row, template: RowTemplate, tokenizer: Any, turns: Turns) -> list[Example]:
    """Return the examples of a row: of two answers one each, which begin alike."""
    _require_shown(row, template)
    if not isinstance(row, Preference):
        return TEMPLATES[template][1](row, tokenizer, turns)
    answers = [TEMPLATES[template][1](side, tokenizer) for side in (row.chosen, row.rejected)]
    if any(len(examples) > 1 for examples in answers):
        raise LeftOutError("with answers of several turns that the chat template rewrites")
    return [example for examples in answers for example in examples]


def _require_shown(row: Row, template: RowTemplate) -> None:
    if not isinstance(row.chosen if isinstance(row, Preference) else row, TEMPLATES[template][0]):
        right = template_of([row], "auto")
        raise UsageError(f"template {template} cannot show this row; set data.template to {right}.")


def check_data(data: DataSpec, *, pairs: bool = False) -> str:
    """Return in one line what a file of rows is read as; empty for other data.

    Nothing is downloaded and no tokenizer needed. Raises ``UsageError`` for what can be seen at once to be
    wrong: the file, its rows (of a large one the first), the template that cannot show them, a hub's id.
    """
    if isinstance(data, HubData):
        require_hub_id(data.dataset)
    if not isinstance(data, JsonlData):
        return ""
    path = Path(data.path)
    large = path.is_file() and path.stat().st_size > _WHOLE_UP_TO
    rows = read_rows(data, pairs=pairs, most=_ROWS_CHECKED if large else None)
    name = template_of([row for _, row in rows.rows], data.template)
    for line, row in rows.rows:
        try:
            _require_shown(row, name)
        except UsageError as error:
            raise UsageError(f"{rows.name}, line {line}: {error}") from None
    return rows.summary()
