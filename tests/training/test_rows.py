"""Files of rows as people have them, every layout, and mistakes with file and line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UsageError
from bench.scenario.types import JsonlData, TrainingSpec
from bench.training.rows.data import IGNORED_LABEL, PreparedData, prepare_batches
from bench.training.rows.examples import check_data
from bench.training.rows.row_layouts import Answer, Chat, Instruction, Preference, Text
from bench.training.rows.rows import Rows, read_rows
from bench.training.trainers import _unpadded_rows
from tiny_tokenizers import byte_level

GOOD = {"instruction": "Add.", "input": "1 2", "output": "3"}
FORGETFUL = (  # reasoning is shown after the last question only, and the prompt does not open it
    "{% set seen = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set seen.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}[{{ m.role }}]"
    "{% if m.role == 'assistant' and loop.index0 > seen.last %}(why){% endif %}{{ m.content }}<end>"
    "{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def data_of(folder: Path, content: str | bytes | list[Any], **settings: Any) -> JsonlData:
    """Write a file, rows as JSON lines, and describe it."""
    path = folder / "rows.json"
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return JsonlData(source="jsonl", path=str(path), **settings)


def read(folder: Path, content: str | bytes | list[Any], **settings: Any) -> Rows:
    """Write a file and read it."""
    return read_rows(data_of(folder, content, **settings))


@pytest.mark.parametrize("pretty", [None, 2])
@pytest.mark.parametrize("piece", [7, 1024])
def test_every_way_to_write_rows_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretty: int | None, piece: int
) -> None:
    """A list and lines, pretty or not, with a mark before and either line end, in pieces of any size."""
    monkeypatch.setattr("bench.training.rows.rows._PIECE", piece)
    rows = [{**GOOD, "input": "ü\n[1]"}, {**GOOD, "input": None}, GOOD]
    expected = [Instruction("Add.", text, "3") for text in ("ü\n[1]", "", "1 2")]
    listed = json.dumps(rows, indent=pretty)
    lines = "\n\n".join(json.dumps(row, indent=pretty) for row in rows)
    for text in (listed, lines, f"\ufeff{listed}", lines.replace("\n", "\r\n"), f"\n {listed} \n"):
        assert expected == [row for _, row in read(tmp_path, text).rows]


@pytest.mark.parametrize("piece", [5, 1024])
def test_rows_are_known_by_their_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """A row of a pretty list by the line on which it begins."""
    monkeypatch.setattr("bench.training.rows.rows._PIECE", piece)
    listed = json.dumps([GOOD, {**GOOD, "output": 5}], indent=1)
    with pytest.raises(UsageError, match=r"rows\.json, line 7: output is a number, not text; correct"):
        read(tmp_path, listed)
    assert [1, 3] == [line for line, _ in read(tmp_path, f"{json.dumps(GOOD)}\n\n{json.dumps(GOOD)}").rows]


TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
SAID = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
PARTS = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
ADD_1 = '{"name": "add", "arguments": {"a": 1}}'
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


@pytest.mark.parametrize(
    ("fields", "name", "expected"),
    [
        (GOOD, "alpaca", Instruction("Add.", "1 2", "3")),
        ({"instruction": "Add.", "context": None, "response": "3"}, "dolly", Instruction("Add.", "", "3")),
        ({"text": "Once.", "id": 1}, "text", Text("Once.")),
        ({"prompt": "Once", "completion": " more"}, "completion", Answer("Once", " more")),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "completion", Chat(TURNS, first=1)),
        ({"messages": TURNS}, "chat", Chat(TURNS)),
        ({"messages": [{"role": "user", "content": PARTS}, TURNS[1]]}, "chat", Chat(TURNS)),
        ({"conversations": SAID}, "sharegpt", Chat(TURNS)),
        (
            {"conversations": SAID, "system": "Be brief.", "tools": '[{"name": "add"}]'},
            "sharegpt",
            Chat([{"role": "system", "content": "Be brief."}, *TURNS], tools=[{"name": "add"}]),
        ),
        ({**GOOD, "input": "", "instruction": "hi", "output": "yo", "system": "S", "history": [["a", "b"]]},
         "alpaca",
         Chat([{"role": "system", "content": "S"}, {"role": "user", "content": "a"},
               {"role": "assistant", "content": "b"}, *TURNS])),
        (
            {"conversations": [SAID[0], {"from": "function_call", "value": ADD_1},
                               {"from": "observation", "value": "2"}, SAID[1]]},
            "sharegpt",
            Chat([TURNS[0], {"role": "assistant", "content": "", "tool_calls": [CALL]},
                  {"role": "tool", "content": "2"}, TURNS[1]]),
        ),
        (
            {"messages": [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [
                {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]}]},
            "chat",
            Chat([TURNS[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}]),
        ),
    ],
)  # fmt: skip
def test_each_layout_is_told_from_its_keys(
    tmp_path: Path, fields: dict[str, Any], name: str, expected: Any
) -> None:
    """Named or not, the row comes out the same, and one line says what it was read as."""
    told, named = read(tmp_path, [fields]), read(tmp_path, [fields], format=name)

    assert [(1, expected)] == told.rows == named.rows
    assert f"{tmp_path}/rows.json: read as {name}: 1 row" == told.summary()


@pytest.mark.parametrize(
    ("fields", "chosen", "rejected"),
    [
        ({"prompt": "Q:", "chosen": " a", "rejected": " b"}, Answer("Q:", " a"), Answer("Q:", " b")),
        ({"chosen": "Q: a", "rejected": "Q: b"}, Answer("Q: ", "a"), Answer("Q: ", "b")),
        (
            {"prompt": "hi", "chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "no"}]},
            Chat(TURNS, first=1),
            Chat([TURNS[0], {"role": "assistant", "content": "no"}], first=1),
        ),
        (
            {"conversations": SAID[:1], "chosen": SAID[1], "rejected": {"from": "gpt", "value": "no"}},
            Chat(TURNS, first=1),
            Chat([TURNS[0], {"role": "assistant", "content": "no"}], first=1),
        ),
    ],
)
def test_preferences_are_read_as_trl_and_llama_factory_write_them(
    tmp_path: Path, fields: dict[str, Any], chosen: Any, rejected: Any
) -> None:
    """A prompt beside two answers, or what they begin with alike."""
    rows = read_rows(data_of(tmp_path, [fields]), pairs=True)

    assert [(1, Preference(chosen, rejected))] == rows.rows


@pytest.mark.parametrize(
    ("fields", "expected", "told"),
    [
        ({"question": "2 + 2?", "answer": "4"}, Answer("2 + 2?\n", "4"), "(question and answer)"),
        ({"problem": "2 + 2?", "solution": "4", "level": 1}, Answer("2 + 2?\n", "4"),
         '(problem and solution; not read: "level")'),
        ({"query": "Q: ", "response": "4"}, Answer("Q: ", "4"), "(query and response)"),
        ({"input": "2 + 2", "output": " = 4"}, Answer("2 + 2", " = 4"), "(input and output)"),
        ({"input": "2 + 2?", "target": "4"}, Answer("2 + 2?\n", "4"), "(input and target)"),
        ({"question": TURNS[:1], "answer": TURNS[1:]}, Chat(TURNS, first=1), "(question and answer)"),
        ({"system_prompt": "S", "question": "hi", "response": "yo"}, Answer("hi\n", "yo"),
         '(question and response; not read: "system_prompt")'),
    ],
)  # fmt: skip
def test_questions_and_answers_of_other_names_are_completions(
    tmp_path: Path, fields: dict[str, Any], expected: Any, told: str
) -> None:
    """The answer begins a line, and one line says which fields were taken and which were not."""
    found, named = read(tmp_path, [fields]), read(tmp_path, [fields], format="completion")

    assert [(1, expected)] == found.rows == named.rows
    assert f"{tmp_path}/rows.json: read as completion {told}: 1 row" == found.summary() == named.summary()


def test_two_answers_to_a_question_have_it_for_their_prompt(tmp_path: Path) -> None:
    """As text, whose answers begin a line, or as turns; one line says what was taken."""
    of_text = {"system": "S", "question": "2 + 2?", "chosen": "4", "rejected": "5"}
    found = read_rows(data_of(tmp_path, [of_text]), pairs=True)
    assert found.rows == [(1, Preference(Answer("2 + 2?\n", "4"), Answer("2 + 2?\n", "5")))]
    assert '(question, chosen and rejected; not read: "system")' in found.summary()

    no = {"role": "assistant", "content": "no"}
    of_turns = {"question": TURNS[0]["content"], "chosen": TURNS[1:], "rejected": [no]}
    found = read_rows(data_of(tmp_path, [of_turns]), pairs=True)
    assert found.rows == [(1, Preference(Chat(TURNS, first=1), Chat([TURNS[0], no], first=1)))]


def test_a_question_without_its_answer_is_named(tmp_path: Path) -> None:
    """By the name that the other rows have for it, as is an answer that is a number."""
    good = {"question": "2 + 2?", "answer": "4"}

    with pytest.raises(UsageError, match=r"line 2: answer is missing; correct the row"):
        read(tmp_path, [good, {"question": "3 + 3?"}])
    with pytest.raises(UsageError, match=r"line 2: answer is a number, not text"):
        read(tmp_path, [good, {"question": "3 + 3?", "answer": 6}])


def test_rows_that_cannot_be_trained_on_are_left_out_and_counted(tmp_path: Path) -> None:
    """Why, and on which lines; where nothing is left, that is a mistake."""
    image = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, TURNS[1]]}
    asked = {"messages": TURNS[:1]}
    rows = read(tmp_path, [{"messages": TURNS}, image, asked, image])

    assert [1] == [line for line, _ in rows.rows]
    assert rows.summary().endswith(
        "read as chat: 4 rows, 3 left out: 2 with an image (lines 2, 4), 1 without a turn of the assistant "
        "to train on (line 3)"
    )
    with pytest.raises(UsageError, match="no row can be trained on here: 1 left out: 1 with an image"):
        read(tmp_path, [image])


DEEP = "[" * 10_000 + "]" * 10_000


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"text": "ok"}\ns3cret, not JSON', r"line 2: not JSON \(expecting value\); give JSON objects"),
        ('{"text": "ok"\n, "s3cret": }', r"line 1: not JSON \(expecting value in line 2\)"),
        ('{"text": "s3cret', r"line 1: not JSON \(unterminated string\)"),
        ('[{"text": "a"}\n{"text": "b"}]', r"line 2: not JSON: a comma or the end of the list belongs"),
        ('[{"text": "a"},', "not JSON: the list is not closed"),
        ('[{"text": "a"}] s3cret', "something follows the end of the list"),
        ('["s3cret"]', r"line 1: text, where a row, an object in braces, belongs"),
        ('{"text": "a\\ud83d"}', "is half a character; write it whole"),
        ("[]", "holds no rows"),
        ("\n \n", "holds no rows"),
        (DEEP, "line 1: nested too deeply to be a row"),
        ('{"text": ' + DEEP + "}", "line 1: nested too deeply"),
        (
            '{"text": "a"}\n{"text": "s3cret", "text": "a"}',
            "line 2: a key stands twice in one object; remove",
        ),
        ('{"text": ' + "9" * 5000 + "}", "line 1: not JSON .a number of thousands of digits"),
        ('{"instruction": "s3cret"}', r'keys \("instruction"\) are of no layout known here; rename them'),
        ('{"version": 1, "rows": [{"text": "s3cret"}]}', 'the rows lie under "rows"; write that list alone'),
        ('{"text": null}', "text is null, not text; correct the row"),
        ('{"messages": []}', "messages is empty, where a list of turns belongs"),
        ('{"messages": ["s3cret"]}', "messages, turn 1 is text, not an object with role and content"),
        ('{"messages": [{"role": "s3cret", "content": "a"}]}', "messages, turn 1: role is none of system,"),
        ('{"messages": [{"role": "user"}]}', "messages, turn 1: content is missing"),
        ('{"conversations": [{"from": "gpt", "value": 3}]}', "turn 1: value is a number, not text or a list"),
        (
            '{"chosen": "a", "rejected": "b"}',
            r"two answers, chosen and rejected, are for loop\.driver trl-dpo",
        ),
        (b"\xff\xfe{\x00}\x00", "is UTF-16 text; save it as UTF-8"),
        (b"PAR1....", "is a Parquet file; write its rows as JSON lines"),
        (b'{"text": "\xff"}', "is not UTF-8 text"),
    ],
)
def test_a_mistake_is_named_in_a_sentence(tmp_path: Path, content: str | bytes, sentence: str) -> None:
    """With file and line, and nothing of what the file holds."""
    with pytest.raises(UsageError, match=sentence) as caught:
        read(tmp_path, content)

    message = str(caught.value)
    assert "rows.json" in message
    assert "s3cret" not in message
    assert "\n" not in message


def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    """A pipe nobody writes to, a device without end and a folder are each refused at once."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(UsageError, match="not a plain file"):
            check_data(JsonlData(source="jsonl", path=str(path)))
    with pytest.raises(UsageError, match=r"Cannot read the data file .* \(No such file or directory\)"):
        check_data(JsonlData(source="jsonl", path=str(tmp_path / "nowhere")))


def test_a_row_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quotes that are never closed do not fill the memory."""
    monkeypatch.setattr("bench.training.rows.rows._PIECE", 8)
    monkeypatch.setattr("bench.training.rows.rows.LONGEST_ROW", 64)
    with pytest.raises(UsageError, match="line 1: a row of more than 64 characters; shorten it"):
        read(tmp_path, '{"text": "' + "a" * 500 + '"}')


def test_reading_stops_at_the_rows_asked_for(tmp_path: Path) -> None:
    """What follows them is not even checked."""
    rows = read(tmp_path, f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}\nnonsense", max_items=2)

    assert rows.summary().endswith("read as alpaca: the first 2 rows")


def test_a_template_that_cannot_show_the_rows_is_found_before_anything_is_loaded(tmp_path: Path) -> None:
    """And what is advised can be done."""
    data = data_of(tmp_path, [{"messages": TURNS}], template="alpaca")
    with pytest.raises(
        UsageError, match=r"line 1: template alpaca cannot show this row; set data\.template to chat"
    ):
        check_data(data)
    assert check_data(data.model_copy(update={"template": "chat"})).endswith("read as chat: 1 row")


def prepared_chats(folder: Path, **settings: Any) -> PreparedData:
    """Return batches of one row each of two conversations of two turns under a template that rewrites."""
    tokenizer = byte_level()
    tokenizer.chat_template = FORGETFUL
    rows = [
        {"messages": [*TURNS, {"role": "user", "content": "so"}, {"role": "assistant", "content": "ok"}]}
    ] * 2
    training = TrainingSpec(sequence_length=128, micro_batch=1)
    return prepare_batches(data_of(folder, rows, **settings), training, tokenizer, 300, 4)


def decoded(prepared: PreparedData) -> set[tuple[str, str]]:
    """Return the whole text of each row, and what of it is trained, as the trainers are given them."""
    tokenizer = byte_level()
    rows = [row for step in prepared.steps for batch in step for row in _unpadded_rows(batch)]
    learnt = [[label for label in row["labels"] if label != IGNORED_LABEL] for row in rows]
    return {
        (tokenizer.decode(row["input_ids"]), tokenizer.decode(ids))
        for row, ids in zip(rows, learnt, strict=True)
    }


def test_each_turn_is_trained_as_the_template_shows_it(tmp_path: Path) -> None:
    """Trained tokens are the assistant's text and the end of its turn; a caveat says how many examples."""
    prepared = prepared_chats(tmp_path)
    first = "[user]hi<end>[assistant]"

    assert decoded(prepared) == {
        (f"{first}(why)yo<end>", "(why)yo<end>"),
        (f"{first}yo<end>[user]so<end>[assistant](why)ok<end>", "(why)ok<end>"),
    }
    told = {caveat.code: caveat.message for caveat in prepared.caveats}
    assert "2 conversations became 4 examples" in told["turns-apart"]
    assert "read as chat: 2 rows; shown by template chat" in told["data-read"]


def test_the_last_turn_alone_is_trained_where_the_scenario_says_so(tmp_path: Path) -> None:
    """And a caveat says so; with everything trained there is one example as well."""
    last, everything = prepared_chats(tmp_path, turns="last"), prepared_chats(tmp_path, train_on="all")
    text = "[user]hi<end>[assistant]yo<end>[user]so<end>[assistant](why)ok<end>"

    assert {(text, "(why)ok<end>")} == decoded(last)
    assert {"data-read", "last-turn-only", "data-repeated"} == {caveat.code for caveat in last.caveats}
    assert {text} == {whole for whole, _ in decoded(everything)}


def test_qwen3_s_own_template_trains_every_answer(tmp_path: Path) -> None:
    """As trl carries it: each answer as it is generated, with the empty reasoning that the template shows."""
    templates = Path(str(pytest.importorskip("trl").__file__)).parent / "chat_templates"
    if not (templates / "qwen3.jinja").is_file():
        pytest.skip("this trl carries no templates")
    tokenizer = byte_level()
    tokenizer.chat_template = (templates / "qwen3.jinja").read_text(encoding="utf-8")
    turns = [*SAID, {"from": "human", "value": "so"}, {"from": "gpt", "value": "<think>\nhm\n</think>\n\nok"}]
    data = data_of(tmp_path, [{"conversations": turns}])
    prepared = prepare_batches(data, TrainingSpec(sequence_length=512), tokenizer, 300, 2)

    assert {learnt for _, learnt in decoded(prepared)} == {
        "<think>\n\n</think>\n\nyo<|im_end|>\n",
        "<think>\nhm\n</think>\n\nok<|im_end|>\n",
    }


def test_rows_that_a_template_refuses_are_left_out_and_counted_once(tmp_path: Path) -> None:
    """In the record, where the template is known."""
    tokenizer = byte_level()
    tokenizer.chat_template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('the user begins') }}{% endif %}" + FORGETFUL
    )
    rows = [{"messages": TURNS}, {"messages": TURNS[1:]}]
    training = TrainingSpec(sequence_length=64)
    prepared = prepare_batches(data_of(tmp_path, rows), training, tokenizer, 300, 1)

    (told,) = [caveat.message for caveat in prepared.caveats if caveat.code == "data-read"]
    assert told.endswith(
        "read as chat: 2 rows, 1 left out: 1 that the chat template refuses: the user begins (line 2); shown "
        "by template chat."
    )


def test_chatml_shows_turns_to_a_tokenizer_without_a_template(tmp_path: Path) -> None:
    """In its own words, and it is said that its marks are no tokens of the vocabulary."""
    data = data_of(tmp_path, [{"conversations": SAID}], template="chatml")
    prepared = prepare_batches(data, TrainingSpec(sequence_length=128), byte_level(), 300, 1)

    assert {
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n", "yo<|im_end|>\n")
    } == decoded(prepared)
    assert "chatml-as-text" in {caveat.code for caveat in prepared.caveats}
