"""Built-in tasks and data sets of the hub as examples, and no way to run code."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from bench.errors import UnavailableError, UsageError
from bench.scenario.types import HubData, TaskData
from bench.training.rows.examples import Segment, load_examples
from bench.training.rows.row_layouts import Instruction
from bench.training.rows.rows import read_rows
from bench.training.rows.tasks import task_items


def test_task_items_end_with_the_answer() -> None:
    """The example of a built-in task is its prompt and its completion, without an end token."""
    item = task_items("longest-word", "easy", "train", 1)[0]
    (example,) = load_examples(TaskData(task="longest-word", train_items=1), None).examples

    assert example.segments == (Segment(item.prompt, trained=False), Segment(item.completion, trained=True))
    assert not example.append_end


def test_train_on_all_trains_the_prompt_too() -> None:
    """The same text, as one trained segment."""
    data = TaskData(task="longest-word", train_items=1, train_on="all")
    (example,) = load_examples(data, None).examples

    assert [True] == [segment.trained for segment in example.segments]


def test_hub_rows_are_read_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, split, revision and the number of rows go to the datasets library."""
    asked: dict[str, Any] = {}

    def load_dataset(path: str, **settings: Any) -> Any:
        asked.update(settings, path=path)
        return datasets.Dataset.from_list([{"instruction": "Add.", "input": "", "output": "3"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read_rows(HubData(source="hub", dataset="owner/name", revision="abc", max_items=5))

    assert [(0, Instruction("Add.", "", "3"))] == rows.rows
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
        read_rows(HubData(source="hub", dataset="owner/name"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dataset", ["../name", "/etc/passwd", "owner/../name", "script.py", "a/b/c"])
def test_a_path_is_no_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str) -> None:
    """A local script must not be loaded (and run) in the place of a data set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").touch()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("loaded"))

    with pytest.raises(UsageError, match="is not the id of a data set on the hub"):
        read_rows(HubData(source="hub", dataset=dataset))
