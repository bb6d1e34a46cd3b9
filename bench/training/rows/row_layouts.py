"""What a row of data holds, whatever its layout: an instruction, turns, text, or two answers to a prompt.

Each layout is a function from a row's fields to one of five types. ``WrongRowError`` says what a row does
wrong, ``LeftOutError`` why one cannot be trained on here, such as one with an image; neither repeats what it
holds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from bench.io import parse_json
from bench.scenario.types import RowFormat

_DEEPEST = 64
_ROLES = {role: role for role in ("system", "developer", "user", "assistant", "tool")}
_ROLES |= dict.fromkeys(("human",), "user")
_ROLES |= dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "function_call"), "assistant")
_ROLES |= dict.fromkeys(("function", "observation", "function_response", "ipython"), "tool")
"""Who speaks, as data sets call them, and as chat templates do."""
_KEPT = ("tool_calls", "name", "tool_call_id", "reasoning_content", "thinking")
REQUESTS_AND_ANSWERS = (
    ("prompt", "completion"),
    ("question", "answer"),
    ("problem", "solution"),
    ("query", "response"),
    ("question", "response"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("input", "output"),
    ("input", "target"),
    ("source", "target"),
)
"""What data sets call a request and its answer, the names of layout completion first."""
_NOT_TEXT = {"image": "an image", "video": "a video", "audio": "sound"}


class WrongRowError(Exception):
    """What a row does wrong, without its place."""


class LeftOutError(Exception):
    """Why a row cannot be trained on here: "with an image"."""


@dataclass(frozen=True)
class Instruction:
    """A request, perhaps with something to go by, and the answer."""

    instruction: str
    context: str
    response: str


@dataclass(frozen=True)
class Chat:
    """Turns as chat templates take them; those of the assistant are trained from number ``first`` on."""

    messages: list[dict[str, Any]]
    first: int = 0
    tools: list[Any] | None = None


@dataclass(frozen=True)
class Text:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Answer:
    """A prompt as it is, and what follows it."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Preference:
    """The better and the worse of two answers to a prompt."""

    chosen: Answer | Chat
    rejected: Answer | Chat


Row = Instruction | Chat | Text | Answer | Preference


def kind_of(value: object) -> str:
    """Return what a value is, in JSON's words."""
    names = {bool: "true or false", str: "text", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")


def _text(row: dict[str, Any], key: str, *, optional: bool = False) -> str:
    value = row.get(key)
    if isinstance(value, str) or (value is None and optional):
        return value or ""
    raise WrongRowError(f"{key} is missing" if key not in row else f"{key} is {kind_of(value)}, not text")


def _plain(row: dict[str, Any]) -> Text:
    if not (text := _text(row, "text")):
        raise LeftOutError("without text")
    return Text(text)


def _list(row: dict[str, Any], key: str) -> list[Any]:
    value = row.get(key)
    if isinstance(value, list) and value:
        return value
    wrong = "is missing" if key not in row else "is empty" if value == [] else f"is {kind_of(value)}"
    raise WrongRowError(f"{key} {wrong}, where a list of turns belongs")


def _instruction(row: dict[str, Any], context: str, response: str) -> Instruction | Chat:
    """Read an instruction; what was said before, as LLaMA-Factory's rows have it, makes it a conversation."""
    found = Instruction(_text(row, "instruction"), _text(row, context, optional=True), _text(row, response))
    before: list[dict[str, Any]] = []
    if system := _text(row, "system", optional=True):
        before.append({"role": "system", "content": system})
    for pair in row.get("history") or []:
        if not (isinstance(pair, list) and [str, str] == [type(one) for one in pair]):
            raise WrongRowError("history holds something else than pairs of a request and its answer")
        before += turns_of(Instruction(pair[0], "", pair[1]))
    return Chat([*before, *turns_of(found)]) if before else found


def turns_of(row: Instruction | Answer) -> list[dict[str, Any]]:
    """Return a request and its answer as turns; what an instruction goes by follows it."""
    request, answer = (
        (row.prompt, row.completion)
        if isinstance(row, Answer)
        else ("\n\n".join(part for part in (row.instruction, row.context) if part), row.response)
    )
    return [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]


def _chat(row: dict[str, Any], key: str) -> Chat:
    for media in ("image", "video", "audio"):
        if row.get(media) or row.get(f"{media}s"):
            raise LeftOutError(f"with {_NOT_TEXT[media]}")
    messages = _turns(row, key)
    if messages[0]["role"] != "system" and (system := _text(row, "system", optional=True)):
        messages = [{"role": "system", "content": system}, *messages]
    return _trainable(Chat(messages, tools=_tools(row.get("tools"))))


def _trainable(chat: Chat) -> Chat:
    if not any(message["role"] == "assistant" for message in chat.messages[chat.first :]):
        raise LeftOutError("without a turn of the assistant to train on")
    return chat


def _tools(value: object) -> list[Any] | None:
    """Return the descriptions of tools, which some data sets hold as JSON in text."""
    if isinstance(value, str) and value.strip():
        try:
            value = parse_json(value)
        except ValueError:
            raise WrongRowError("tools is text that is not JSON") from None
    if value and not isinstance(value, list):
        raise WrongRowError(f"tools is {kind_of(value)}, not a list")
    return _shallow(value, "tools") if value else None


def _shallow(value: Any, name: str, left: int = _DEEPEST) -> Any:
    """Return a value that templates may walk through."""
    if not left:
        raise WrongRowError(f"{name} is nested more than {_DEEPEST} levels deep")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _shallow(inner, name, left - 1)
    return value


def _turns(row: dict[str, Any], key: str) -> list[dict[str, Any]]:
    return [_turn(turn, f"{key}, turn {number}") for number, turn in enumerate(_list(row, key), start=1)]


def _turn(turn: object, where: str) -> dict[str, Any]:
    """Return a turn as chat templates take it, whichever names it has."""
    if not isinstance(turn, dict):
        raise WrongRowError(f"{where} is {kind_of(turn)}, not an object with role and content")
    speaker, said = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
    role = turn.get(speaker)
    if not isinstance(role, str) or role not in _ROLES:
        known = ", ".join(_ROLES)
        raise WrongRowError(f"{where}: {speaker} is none of {known}")
    message: dict[str, Any] = {"role": _ROLES[role], "content": _said(turn, said, where)}
    message |= {name: _shallow(turn[name], f"{where}: {name}") for name in _KEPT if turn.get(name)}
    if role == "function_call":
        call = _parsed(message["content"])
        if not isinstance(call, dict) or "name" not in call:
            raise WrongRowError(f"{where}: a function_call is not JSON with name and arguments")
        message |= {"content": "", "tool_calls": [{"type": "function", "function": call}]}
    for call in message.get("tool_calls", ()):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise WrongRowError(f"{where}: tool_calls are not objects with the name of a function")
        function["arguments"] = _parsed(function.get("arguments"))
    return message


def _parsed(value: object) -> object:
    """Return what JSON in text holds: templates write arguments as JSON themselves."""
    try:
        return parse_json(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _said(turn: dict[str, Any], key: str, where: str) -> str:
    content = turn.get(key)
    if isinstance(content, str):
        return content
    if content is None and turn.get("tool_calls"):
        return ""
    if not isinstance(content, list):
        wrong = "missing" if key not in turn else f"{kind_of(content)}, not text or a list of parts"
        raise WrongRowError(f"{where}: {key} is {wrong}")
    parts = [{"text": part} if isinstance(part, str) else part for part in content]
    for part in parts:
        if not isinstance(part, dict):
            raise WrongRowError(f"{where}: {key} has a part that is {kind_of(part)}")
        if not isinstance(part.get("text"), str):
            kind = str(part.get("type"))
            media = next(
                (name for word, name in _NOT_TEXT.items() if word in kind), "a part that is not text"
            )
            raise LeftOutError(f"with {media}")
    return "".join(part["text"] for part in parts)


def shared_beginning(one: str, other: str) -> str:
    return "".join(
        left for left, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    )


def request_and_answer(row: dict[str, Any]) -> tuple[str, str]:
    """Return the names of a row's request and answer: the first pair of which it has most."""
    return max(REQUESTS_AND_ANSWERS, key=lambda pair: len(row.keys() & {*pair}))


def _completion(row: dict[str, Any]) -> Answer | Chat:
    request, answer = request_and_answer(row)
    if isinstance(row.get(answer), list):
        return _following(row, answer, _turns(row, request))
    prompt, completion = _text(row, request), _text(row, answer)
    own = (request, answer) == REQUESTS_AND_ANSWERS[0]
    return Answer(prompt if own else _asked(prompt, completion), completion)


def _asked(question: str, answer: str) -> str:
    """Return a question as a prompt: it was not written to be completed, so that answers begin a line."""
    return question if question[-1:].isspace() or answer[:1].isspace() else f"{question}\n"


def question_of(row: dict[str, Any]) -> str | None:
    """Return the name of what two answers are to, unless it is prompt; None without such a field."""
    return None if "prompt" in row else next((one for one, _ in REQUESTS_AND_ANSWERS if one in row), None)


def _following(row: dict[str, Any], key: str, prompt: list[dict[str, Any]]) -> Chat:
    messages = [*prompt, *_turns(row, key)]
    return _trainable(Chat(messages, first=len(prompt), tools=_tools(row.get("tools"))))


def _preference(row: dict[str, Any]) -> Preference:
    """Read two answers; where no prompt stands beside them it is what both begin with, as trl takes it."""
    keys = ("chosen", "rejected")
    if isinstance(row.get(question := question_of(row) or ""), str):
        first = row["chosen"] if isinstance(row["chosen"], str) else "\n"  # a turn begins by itself
        row = {**row, "prompt": _asked(_text(row, question), first)}
    if all(isinstance(row.get(key), dict) for key in keys):  # LLaMA-Factory's: one turn each, after others
        row = {**row, **{key: [row[key]] for key in keys}, "prompt": row.get("conversations")}
    if not isinstance(row.get("chosen"), list):
        prompt, chosen, rejected = (_text(row, key, optional=key == "prompt") for key in ("prompt", *keys))
        if "prompt" not in row:
            prompt = shared_beginning(chosen, rejected)
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        return Preference(Answer(prompt, chosen), Answer(prompt, rejected))
    before: list[dict[str, Any]] = []
    if isinstance(row.get("prompt"), list):
        before = _turns(row, "prompt")
    else:  # none, or the text of the first turn again
        both = zip(_turns(row, "chosen"), _turns(row, "rejected"), strict=False)
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], both)))
        before = _turns(row, "chosen")[:shared]
        if not before and _text(row, "prompt", optional=True):
            before = [{"role": "user", "content": row["prompt"]}]
        row = {**row, **{key: row[key][shared:] for key in keys}}
    return Preference(_following(row, "chosen", before), _following(row, "rejected", before))


ROW_OF: dict[RowFormat, Callable[[dict[str, Any]], Row]] = {
    "alpaca": lambda row: _instruction(row, "input", "output"),
    "dolly": lambda row: _instruction(row, "context", "response"),
    "chat": lambda row: _chat(row, "messages"),
    "sharegpt": lambda row: _chat(row, "conversations"),
    "text": _plain,
    "completion": _completion,
    "preference": _preference,
}
