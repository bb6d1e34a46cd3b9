"""Finding lm-eval tasks by name: quick, helpful, and never by path."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from bench.errors import InfrastructureError, UnavailableError, UsageError
from bench.scenario.types import SyntheticData, TaskData
from bench.training import evaluation
from bench.training import evaluation as evaluation_module
from bench.training.evaluation import find_task_file, load_tasks
from bench.training.rows import tasks


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("arc_easy", "arc/arc_easy.yaml"),
        ("hellaswag", "hellaswag/hellaswag.yaml"),
        ("mmlu_anatomy", "mmlu/default/mmlu_anatomy.yaml"),
    ],
)
def test_a_single_task_is_found_by_name(name: str, expected: str) -> None:
    """The file is the one that lm-eval's own index leads to."""
    path = find_task_file(name)

    assert path is not None
    assert path.as_posix().endswith(f"lm_eval/tasks/{expected}")


@pytest.mark.parametrize("name", ["ai2_arc", "mmlu", "no_such_task", ".*"])
def test_groups_tags_and_unknown_names_have_no_file(name: str) -> None:
    """They are left to lm-eval's own index, and a name is not a pattern."""
    assert find_task_file(name) is None


def test_offline_a_task_of_the_hub_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence says what cannot be had and what needs no network."""

    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'allenai/ai2_arc' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        UnavailableError, match=r"arc_easy cannot be fetched \(Couldn't reach.*or use held-out or mmlu-281"
    ):
        load_tasks("arc_easy", SyntheticData())


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of lm-eval's tasks need modules it does not install."""

    def load_dataset(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'langdetect'", name="langdetect")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UnavailableError, match="arc_easy needs the Python module langdetect; install it"):
        load_tasks("arc_easy", SyntheticData())


def test_an_unknown_name_gets_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole index is asked, and the mistake put right."""
    index = SimpleNamespace(all_tasks=["arc_challenge", "arc_easy"])
    monkeypatch.setattr(evaluation, "_whole_index", lambda: index)

    with pytest.raises(UsageError, match="no task named 'arc_eesy'; perhaps you meant arc_easy"):
        load_tasks("arc_eesy", SyntheticData())
    with pytest.raises(UsageError, match="perhaps you meant held-out"):
        load_tasks("heldout", SyntheticData())


def test_a_path_is_no_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scenario from a stranger must not make lm-eval run code that a YAML file names."""
    monkeypatch.setattr(evaluation, "_whole_index", lambda: SimpleNamespace(all_tasks=["arc_easy"]))
    path = tmp_path / "task.yaml"
    path.write_text("task: mine\ndoc_to_text: !function code.run\n", encoding="utf-8")

    with pytest.raises(UsageError, match="no task named"):
        load_tasks(str(path), SyntheticData())


def test_held_out_needs_a_built_in_task() -> None:
    """Other data have no held-out set here."""
    with pytest.raises(UsageError, match=r"held-out needs data\.source task"):
        load_tasks("held-out", SyntheticData())


def test_held_out_has_as_many_items_as_asked() -> None:
    """The number of items is the data's."""
    loaded = load_tasks("held-out", TaskData(task="largest-number", held_out_items=7))

    assert 7 == len(list(loaded["tasks"]["held-out"].test_docs()))


def test_another_number_of_mmlu_questions_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later lm-eval may carry others; results would not compare."""
    monkeypatch.setattr(tasks, "MMLU_QUESTIONS", 282)
    with pytest.raises(InfrastructureError, match="carries 281 MMLU questions instead of 282"):
        load_tasks("mmlu-281", SyntheticData())

    monkeypatch.setattr(tasks, "_MMLU_FILE", "nowhere.json")
    with pytest.raises(InfrastructureError, match=r"does not carry nowhere\.json; install lm-eval"):
        load_tasks("mmlu-281", SyntheticData())


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({}, True),
        ({"metrics": ["acc", "f1"]}, True),
        ({"doc_hash": "1"}, False),
        ({"target": 1}, False),
        ({"arguments": [("Q: 1 + 1 =", " 2"), ("Q: 1 + 1 =", " 4")]}, False),
        ({"arguments": [("1 + 1 =", " 2"), ("1 + 1 =", " 3")]}, False),
        ({"arguments": [("Q: 1 + 1 =", " 2")]}, False),
        ({"arguments": [("Q: 1 + 1 =", {"max_gen_toks": 1})]}, False),
    ],
)
def test_a_question_put_otherwise_is_another(changed: dict[str, Any], same: bool) -> None:  # noqa: FBT001 - a case
    """Another prompt, choice or answer that counts, with the same data."""
    asked = {
        "doc_id": 0,
        "filter": "none",
        "doc_hash": "0",
        "doc": {},
        "target": 0,
        "arguments": [("Q: 1 + 1 =", " 2"), ("Q: 1 + 1 =", " 3")],
        "metrics": ["acc"],
        "acc": 1.0,
    }
    first, second = (evaluation_module._asked(each) for each in (asked, asked | changed))
    assert same == (first == second)
