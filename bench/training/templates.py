"""Rows of a data set as text in which the trained part is marked: the prompt templates.

Text only, no tokens. A template is named in the scenario; none is chosen by guessing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bench.errors import UsageError

TemplateName = Literal["alpaca", "chat", "plain"]
FormatName = Literal["alpaca", "dolly", "chat", "text"]

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


class AlpacaRow(_Fields):
    """An instruction as Stanford Alpaca stores it."""

    instruction: str
    context: str = Field("", alias="input")
    response: str = Field(alias="output")


class DollyRow(_Fields):
    """An instruction as Databricks Dolly stores it."""

    instruction: str
    context: str = ""
    response: str


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


ROWS: dict[FormatName, type[AlpacaRow | DollyRow | ChatRow | TextRow]] = {
    "alpaca": AlpacaRow,
    "dolly": DollyRow,
    "chat": ChatRow,
    "text": TextRow,
}
Row = AlpacaRow | DollyRow | ChatRow | TextRow


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


def alpaca_template(row: Row, _tokenizer: Any) -> Example:
    """Write Stanford Alpaca's prompt, then the response."""
    if not isinstance(row, AlpacaRow | DollyRow):
        raise UsageError(
            "Template alpaca needs rows with an instruction; set data.format to alpaca or dolly."
        )
    prompt = ALPACA_PROMPT_WITH_INPUT if row.context else ALPACA_PROMPT
    filled = prompt.format(instruction=row.instruction, context=row.context)
    return Example(segments=(Segment(filled, trained=False), Segment(row.response, trained=True)))


def plain_template(row: Row, _tokenizer: Any) -> Example:
    """Take text as it is; of an instruction its parts, a line each, the last of which is the completion."""
    match row:
        case TextRow():
            return Example(segments=(Segment(row.text, trained=True),))
        case AlpacaRow() | DollyRow():
            prompt = "".join(f"{part}\n" for part in (row.instruction, row.context) if part)
            return Example(segments=(Segment(prompt, trained=False), Segment(row.response, trained=True)))
        case ChatRow():
            raise UsageError("Template plain has no roles for a conversation; set data.template to chat.")


def chat_template(row: Row, tokenizer: Any) -> Example:
    """Apply the tokenizer's own chat template; every assistant turn is a completion.

    Raises ``UsageError`` if the tokenizer has none or it rewrites earlier turns, for then the end of
    a prompt cannot be known.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError("The model's tokenizer has no chat template; set data.template to alpaca or plain.")
    messages = [message.model_dump() for message in _messages(row)]
    segments = []
    done = ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _render(tokenizer, messages[:index], add_generation_prompt=True)
        turn = _render(tokenizer, messages[: index + 1], add_generation_prompt=False)
        if not (prompt.startswith(done) and turn.startswith(prompt)):
            raise UsageError(
                "The tokenizer's chat template rewrites earlier turns, so the end of a prompt is unknown; "
                "set data.template to alpaca or plain."
            )
        segments += [
            Segment(prompt[len(done) :], trained=False),
            Segment(turn[len(prompt) :], trained=True),
        ]
        done = turn
    if not segments:
        raise UsageError("A conversation has no assistant turn to train on; remove it from the data.")
    return Example(segments=tuple(segments), special_tokens=False, append_end=False)


TEMPLATES: dict[TemplateName, Callable[[Row, Any], Example]] = {
    "alpaca": alpaca_template,
    "chat": chat_template,
    "plain": plain_template,
}


def _messages(row: Row) -> list[Message]:
    match row:
        case ChatRow():
            return row.messages
        case AlpacaRow() | DollyRow():
            request = "\n\n".join(part for part in (row.instruction, row.context) if part)
            return [
                Message(role="user", content=request),
                Message(role="assistant", content=row.response),
            ]
        case TextRow():
            raise UsageError("Template chat needs turns, and text has none; set data.template to plain.")


def _render(tokenizer: Any, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    rendered: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    return rendered
