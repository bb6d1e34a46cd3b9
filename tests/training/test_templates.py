"""Templates: the text to the letter, and which part of it is trained."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from bench.errors import UsageError
from bench.records.records import Record
from bench.scenario.cell import TEMPLATES_OF_FORMAT, Cell
from bench.training.examples import (
    TEMPLATES,
    AlpacaRow,
    ChatRow,
    DollyRow,
    FormatName,
    Message,
    Row,
    Segment,
    TemplateName,
    TextRow,
    alpaca_template,
    chat_template,
    plain_template,
)

CHAT = ChatRow(
    messages=[
        Message(role="user", content="hi"),
        Message(role="assistant", content="yo"),
        Message(role="user", content="bye"),
        Message(role="assistant", content="so long"),
    ]
)
ROW_OF_FORMAT: dict[FormatName, Row] = {
    "alpaca": AlpacaRow.model_validate({"instruction": "Add.", "output": "3"}),
    "dolly": DollyRow(instruction="Add.", response="3"),
    "chat": CHAT,
    "text": TextRow(text="Once."),
}


class ChatTokenizer:
    """Renders turns in brackets; stands in for a tokenizer with a chat template."""

    chat_template = "a template"

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """Write ``[role]content;`` per turn."""
        assert not tokenize
        text = "".join(f"[{message['role']}]{message['content']};" for message in messages)
        return text + "[assistant]" * add_generation_prompt


class ForgetfulTokenizer(ChatTokenizer):
    """Drops all but the last two turns, as templates do that strip earlier reasoning."""

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """Write the last two turns."""
        return super().apply_chat_template(
            messages[-2:], tokenize=tokenize, add_generation_prompt=add_generation_prompt
        )


def test_alpaca_prompt_with_input_is_stanfords() -> None:
    """The prompt matches Stanford Alpaca's train.py, and only the response is trained."""
    row = AlpacaRow.model_validate({"instruction": "Add {them}.", "input": "1 2", "output": "3"})
    prompt = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd {them}.\n\n### Input:\n1 2\n\n### Response:"
    )

    assert alpaca_template(row, None).segments == (Segment(prompt, trained=False), Segment("3", trained=True))


def test_alpaca_prompt_without_input_has_no_input_section() -> None:
    """Dolly rows go through the same prompt; an empty context leaves its section out."""
    row = DollyRow(instruction="Say hi.", response="hi")
    prompt = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSay hi.\n\n### Response:"
    )

    assert alpaca_template(row, None).text == f"{prompt}hi"


def test_plain_keeps_text_as_it_is() -> None:
    """Plain text is all completion."""
    assert plain_template(TextRow(text="Once."), None).segments == (Segment("Once.", trained=True),)


def test_plain_puts_the_parts_of_an_instruction_on_lines() -> None:
    """Instruction and context are the prompt."""
    row = DollyRow(instruction="Add.", context="1 2", response="3")

    assert plain_template(row, None).segments == (
        Segment("Add.\n1 2\n", trained=False),
        Segment("3", trained=True),
    )


def test_chat_trains_on_every_assistant_turn() -> None:
    """The text is the template's own, and what the assistant says is the trained part of it."""
    example = chat_template(CHAT, ChatTokenizer())

    assert example.segments == (
        Segment("[user]hi;[assistant]", trained=False),
        Segment("yo;", trained=True),
        Segment("[user]bye;[assistant]", trained=False),
        Segment("so long;", trained=True),
    )
    assert (example.special_tokens, example.append_end) == (False, False)


def test_chat_takes_instructions_as_one_exchange() -> None:
    """The context follows the instruction in the user's turn."""
    row = DollyRow(instruction="Add.", context="1 2", response="3")

    assert chat_template(row, ChatTokenizer()).text == "[user]Add.\n\n1 2;[assistant]3;"


@pytest.mark.parametrize(
    ("row", "tokenizer", "sentence"),
    [
        (CHAT, None, "has no chat template; set data.template"),
        (CHAT, ForgetfulTokenizer(), "rewrites earlier turns"),
        (ChatRow(messages=[Message(role="user", content="hi")]), ChatTokenizer(), "no assistant turn"),
        (TextRow(text="Once."), ChatTokenizer(), "set data.template to plain"),
    ],
)
def test_chat_refuses_in_a_sentence(row: ChatRow | TextRow, tokenizer: Any, sentence: str) -> None:
    """No template, a template that forgets, no assistant and no turns are each said."""
    with pytest.raises(UsageError, match=sentence):
        chat_template(row, tokenizer)


def test_other_templates_refuse_what_they_cannot_show() -> None:
    """A conversation has no instruction, and plain text no roles."""
    with pytest.raises(UsageError, match=r"set data\.format to alpaca or dolly"):
        alpaca_template(CHAT, None)
    with pytest.raises(UsageError, match=r"set data\.template to chat"):
        plain_template(CHAT, None)


@pytest.mark.parametrize("template", sorted(TEMPLATES))
@pytest.mark.parametrize("row_format", sorted(ROW_OF_FORMAT))
def test_a_cell_is_refused_exactly_if_its_template_cannot_show_its_rows(
    make_record: Callable[..., Record], row_format: FormatName, template: TemplateName
) -> None:
    """What the scenario's validation lets through, the template can write, and the other way round."""
    fits = template in TEMPLATES_OF_FORMAT[row_format]
    fields = make_record().cell.model_dump()
    fields["data"] = {"source": "hub", "dataset": "owner/name", "format": row_format, "template": template}
    fields["evaluation"]["tasks"] = ()

    if fits:
        assert Cell.model_validate(fields).digest
        assert TEMPLATES[template](ROW_OF_FORMAT[row_format], ChatTokenizer()).text
    else:
        with pytest.raises(ValidationError, match=f"{template} does not fit format {row_format}; set "):
            Cell.model_validate(fields)
        with pytest.raises(UsageError):
            TEMPLATES[template](ROW_OF_FORMAT[row_format], ChatTokenizer())
