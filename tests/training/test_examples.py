"""Sources: rows checked one by one, mistakes with file and line, and no way to run code."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from bench.errors import UnavailableError, UsageError
from bench.scenario.types import HubData, JsonlData, TaskData
from bench.training.examples import (
    AlpacaRow,
    ChatRow,
    DollyRow,
    Message,
    Row,
    Segment,
    TextRow,
    load_examples,
    read_hub,
    read_jsonl,
)
from bench.training.tasks import task_items

GOOD = '{"instruction": "Add.", "input": "1 2", "output": "3", "extra": 1}'


def jsonl(tmp_path: Path, text: str, **settings: Any) -> JsonlData:
    """Write a file and describe it."""
    path = tmp_path / "data.jsonl"
    path.write_text(text, encoding="utf-8")
    return JsonlData(source="jsonl", path=str(path), **settings)


@pytest.mark.parametrize(
    ("row_format", "fields", "expected"),
    [
        ("alpaca", json.loads(GOOD), AlpacaRow(instruction="Add.", input="1 2", output="3")),
        (
            "dolly",
            {"instruction": "Add.", "context": "", "response": "3"},
            DollyRow(instruction="Add.", response="3"),
        ),
        (
            "chat",
            {"messages": [{"role": "user", "content": "hi"}]},
            ChatRow(messages=[Message(role="user", content="hi")]),
        ),
        ("text", {"text": "Once."}, TextRow(text="Once.")),
    ],
)
def test_each_format_reads_its_fields(
    tmp_path: Path, row_format: str, fields: dict[str, Any], expected: Row
) -> None:
    """Fields of the format are read, others are not used, blank lines are passed over."""
    data = jsonl(tmp_path, f"{json.dumps(fields)}\n\n", format=row_format)

    assert read_jsonl(data) == [expected]


def test_max_items_stops_reading(tmp_path: Path) -> None:
    """What follows the last row asked for is not even checked."""
    assert len(read_jsonl(jsonl(tmp_path, f"{GOOD}\n{GOOD}\nnonsense\n", max_items=2))) == 2


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("s3cret, not JSON", r"data\.jsonl, line 3: not a JSON object; give one object per line"),
        ('["s3cret"]', r"data\.jsonl, line 3: the row: .*; correct it, or data\.format \(now alpaca\)"),
        ('{"instruction": "s3cret"}', r"data\.jsonl, line 3: output: Field required; correct it"),
        ('{"instruction": "s3cret", "output": 5}', r"data\.jsonl, line 3: output: .*valid string; correct"),
        ("[" * 100_000, r"data\.jsonl, line 3: not a JSON object"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(tmp_path: Path, line: str, sentence: str) -> None:
    """The message names file, line and key, and repeats nothing that the file holds."""
    with pytest.raises(UsageError, match=sentence) as caught:
        read_jsonl(jsonl(tmp_path, f"{GOOD}\n\n{line}\n"))

    assert "s3cret" not in str(caught.value)


def test_an_unreadable_file_is_said(tmp_path: Path) -> None:
    """A missing file, an empty one and one that is not text each get a sentence."""
    with pytest.raises(UsageError, match=r"Cannot read .*nowhere\.jsonl \(No such file or directory\)"):
        read_jsonl(JsonlData(source="jsonl", path=str(tmp_path / "nowhere.jsonl")))
    with pytest.raises(UsageError, match="holds no rows"):
        read_jsonl(jsonl(tmp_path, "\n"))
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        read_jsonl(JsonlData(source="jsonl", path=str(tmp_path / "bytes.jsonl")))


def test_task_items_end_with_the_answer() -> None:
    """The example of a built-in task is its prompt and its completion, without an end token."""
    item = task_items("longest-word", "easy", "train", 1)[0]
    (example,) = load_examples(TaskData(task="longest-word", train_items=1), None)

    assert example.segments == (Segment(item.prompt, trained=False), Segment(item.completion, trained=True))
    assert not example.append_end


def test_train_on_all_trains_the_prompt_too() -> None:
    """The same text, as one trained segment."""
    (example,) = load_examples(TaskData(task="longest-word", train_items=1, train_on="all"), None)

    assert [True] == [segment.trained for segment in example.segments]


def test_hub_rows_are_read_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, split, revision and the number of rows go to the datasets library."""
    asked: dict[str, Any] = {}

    def load_dataset(path: str, **settings: Any) -> Any:
        asked.update(settings, path=path)
        return datasets.Dataset.from_list([{"instruction": "Add.", "input": "", "output": "3"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read_hub(HubData(source="hub", dataset="owner/name", revision="abc", max_items=5))

    assert rows == [AlpacaRow(instruction="Add.", input="", output="3")]
    assert asked == {"path": "owner/name", "name": None, "split": "train[:5]", "revision": "abc"}


@pytest.mark.parametrize(
    ("error", "expected", "sentence"),
    [
        (ConnectionError("Couldn't reach it"), UnavailableError, r"Couldn't reach it.*or use source jsonl"),
        (ValueError("Unknown split"), UsageError, r"Unknown split.*correct data\.config or data\.split"),
    ],
)
def test_a_hub_that_fails_ends_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[Exception], sentence: str
) -> None:
    """Offline the cell is unavailable; a split that does not exist is a mistake of the scenario's."""

    def load_dataset(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(expected, match=sentence) as caught:
        read_hub(HubData(source="hub", dataset="owner/name"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dataset", ["../name", "/etc/passwd", "owner/../name", "script.py", "a/b/c"])
def test_a_path_is_no_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str) -> None:
    """A local script must not be loaded (and run) in the place of a data set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").touch()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("loaded"))

    with pytest.raises(UsageError, match="is not the id of a data set on the hub"):
        read_hub(HubData(source="hub", dataset=dataset))
