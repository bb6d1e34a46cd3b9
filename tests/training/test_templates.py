"""Templates: the text to the letter, and which part of it is trained."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
from jinja2 import TemplateError
from pydantic import ValidationError

from bench.errors import UsageError
from bench.records.records import Record
from bench.scenario.cell import TEMPLATES_OF_FORMAT, Cell
from bench.scenario.types import RowFormat, RowTemplate
from bench.training.rows.examples import (
    Segment,
    _require_shown,
    alpaca_template,
    chat_template,
    plain_template,
)
from bench.training.rows.row_layouts import Answer, Chat, Instruction, LeftOutError, Row, Text


def turns(*said: tuple[str, str]) -> list[dict[str, Any]]:
    """Return turns as chat templates take them."""
    return [{"role": role, "content": content} for role, content in said]


CHAT = Chat(turns(("user", "hi"), ("assistant", "yo"), ("user", "bye"), ("assistant", "so long")))
ADD = Instruction("Add.", "", "3")
ROW_OF_FORMAT: dict[RowFormat, Row] = {
    "alpaca": ADD,
    "dolly": ADD,
    "chat": CHAT,
    "sharegpt": CHAT,
    "text": Text("Once."),
    "completion": Answer("Once", " upon a time."),
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
    """Shows reasoning in the last turn only, as current reasoning models' templates do."""

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """Write every turn, the last answer with its reasoning."""
        *before, last = messages
        if last["role"] == "assistant":
            messages = [*before, {**last, "content": f"(why){last['content']}"}]
        return super().apply_chat_template(
            messages, tokenize=tokenize, add_generation_prompt=add_generation_prompt
        )


def test_alpaca_prompt_with_input_is_stanfords() -> None:
    """The prompt matches Stanford Alpaca's train.py, and only the response is trained."""
    row = Instruction("Add {them}.", "1 2", "3")
    prompt = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd {them}.\n\n### Input:\n1 2\n\n### Response:"
    )

    (example,) = alpaca_template(row, None)
    assert example.segments == (Segment(prompt, trained=False), Segment("3", trained=True))


def test_alpaca_prompt_without_input_has_no_input_section() -> None:
    """Dolly rows go through the same prompt; an empty context leaves its section out."""
    (example,) = alpaca_template(Instruction("Say hi.", "", "hi"), None)
    prompt = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSay hi.\n\n### Response:"
    )

    assert example.text == f"{prompt}hi"


def test_plain_keeps_text_as_it_is() -> None:
    """Plain text is all completion."""
    (example,) = plain_template(Text("Once."), None)
    assert example.segments == (Segment("Once.", trained=True),)


def test_plain_puts_the_parts_of_an_instruction_on_lines() -> None:
    """Instruction and context are the prompt."""
    (example,) = plain_template(Instruction("Add.", "1 2", "3"), None)

    assert example.segments == (
        Segment("Add.\n1 2\n", trained=False),
        Segment("3", trained=True),
    )


def test_chat_trains_on_every_assistant_turn() -> None:
    """The text is the template's own, and what the assistant says is the trained part of it."""
    (example,) = chat_template(CHAT, ChatTokenizer())

    assert example.segments == (
        Segment("[user]hi;[assistant]", trained=False),
        Segment("yo;", trained=True),
        Segment("[user]bye;[assistant]", trained=False),
        Segment("so long;", trained=True),
    )
    assert (example.special_tokens, example.append_end) == (False, False)


def test_chat_takes_instructions_as_one_exchange() -> None:
    """The context follows the instruction in the user's turn."""
    (example,) = chat_template(Instruction("Add.", "1 2", "3"), ChatTokenizer())

    assert example.text == "[user]Add.\n\n1 2;[assistant]3;"


def test_a_template_that_rewrites_earlier_turns_gives_each_its_own_example() -> None:
    """What was rewritten is shown as it is when the turn is answered, and is trained once."""
    first, second = chat_template(CHAT, ForgetfulTokenizer())

    asked = Segment("[user]hi;[assistant]", trained=False)
    assert first.segments == (asked, Segment("(why)yo;", trained=True))
    assert second.text == "[user]hi;[assistant]yo;[user]bye;[assistant](why)so long;"
    assert [Segment("(why)so long;", trained=True)] == [one for one in second.segments if one.trained]


def test_the_last_turn_alone_may_be_trained() -> None:
    """With both kinds of template, one example that ends with it."""
    for tokenizer, last in ((ChatTokenizer(), "so long;"), (ForgetfulTokenizer(), "(why)so long;")):
        (example,) = chat_template(CHAT, tokenizer, "last")
        assert [last] == [one.text for one in example.segments if one.trained]


def test_a_prompt_that_opens_what_the_answer_drops_ends_before_it() -> None:
    """As where a template begins reasoning in the prompt and shows none in an answer (DeepSeek-R1's)."""

    class Thinking(ChatTokenizer):
        def apply_chat_template(self, *arguments: Any, **settings: Any) -> str:
            text = super().apply_chat_template(*arguments, **settings)
            return f"{text}<think>" if settings["add_generation_prompt"] else text

    (example,) = chat_template(Chat(turns(("user", "hi"), ("assistant", "yo"))), Thinking())

    assert example.segments == (Segment("[user]hi;[assistant]", trained=False), Segment("yo;", trained=True))


def test_only_what_follows_a_given_prompt_is_trained() -> None:
    """Of prompt and completion in turns, the turns of the prompt are not."""
    (example,) = chat_template(Chat(CHAT.messages, first=2), ChatTokenizer())

    assert ["so long;"] == [one.text for one in example.segments if one.trained]


def test_what_a_template_does_not_show_or_refuses_is_left_out_by_name() -> None:
    """Tool calls, an answer, or turns in an order that the template does not allow."""
    call = {"function": {"name": "look_up", "arguments": {}}}
    asked = Chat([*turns(("user", "hi")), {"role": "assistant", "content": "", "tool_calls": [call]}])
    with pytest.raises(LeftOutError, match="tool calls the chat template does not show"):
        chat_template(asked, ChatTokenizer())

    class Strict(ChatTokenizer):
        def apply_chat_template(self, *_: Any, **__: Any) -> str:
            raise TemplateError("roles must alternate")

    with pytest.raises(LeftOutError, match="refuses: roles must alternate"):
        chat_template(CHAT, Strict())

    class Sliding(ChatTokenizer):
        def apply_chat_template(self, messages: Any, **settings: Any) -> str:
            return super().apply_chat_template(messages[-1:], **settings)

    with pytest.raises(LeftOutError, match="whose question the chat template rewrites"):
        chat_template(CHAT, Sliding())

    class Silent(ChatTokenizer):
        def apply_chat_template(self, messages: Any, **_: Any) -> str:
            return "[turn]" * len(messages)

    with pytest.raises(LeftOutError, match="whose answer the chat template does not show"):
        chat_template(CHAT, Silent())


def test_a_tokenizer_without_a_template_is_told_of_one_that_fits() -> None:
    """The advice can be followed: chatml shows turns to any tokenizer."""
    with pytest.raises(UsageError, match=r"no chat template; set data\.template to chatml"):
        chat_template(CHAT, None)


@pytest.mark.parametrize("template", get_args(RowTemplate))
@pytest.mark.parametrize("row_format", sorted(ROW_OF_FORMAT))
def test_a_cell_is_refused_exactly_if_its_template_cannot_show_its_rows(
    make_record: Callable[..., Record], row_format: RowFormat, template: RowTemplate
) -> None:
    """What the scenario's validation lets through, the template can show, and the other way round."""
    fits = template in TEMPLATES_OF_FORMAT[row_format]
    fields = make_record().cell.model_dump()
    fields["data"] = {"source": "hub", "dataset": "owner/name", "format": row_format, "template": template}
    fields["evaluation"]["tasks"] = ()

    if fits:
        assert Cell.model_validate(fields).digest
        _require_shown(ROW_OF_FORMAT[row_format], template)
    else:
        with pytest.raises(ValidationError, match=f"{template} does not fit format {row_format}; set "):
            Cell.model_validate(fields)
        with pytest.raises(UsageError, match=r"cannot show this row; set data\.template to"):
            _require_shown(ROW_OF_FORMAT[row_format], template)
