"""Built-in tasks: right answers, balanced positions, and sets that never overlap."""

from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest

from bench.errors import UsageError
from bench.scenario import catalogue
from bench.training.rows import tasks
from bench.training.rows.tasks import (
    LETTERS,
    TASKS,
    WORDS,
    Difficulty,
    Task,
    TaskItem,
    belongs_to,
    mmlu_questions,
    task_items,
)

EVERY_TASK = pytest.mark.parametrize("task", sorted(TASKS))
BOTH_DIFFICULTIES = pytest.mark.parametrize("difficulty", ["easy", "hard"])


def options(item: TaskItem) -> list[str]:
    """Read the four options back from a prompt."""
    first_line = item.prompt.splitlines()[0]
    if first_line.startswith("Words: "):
        return first_line.removeprefix("Words: ").split(", ")
    return first_line.split()[1::2]


@EVERY_TASK
@BOTH_DIFFICULTIES
def test_training_and_held_out_items_share_no_options(task: str, difficulty: Difficulty) -> None:
    """No held-out question is a training question, not even in another order."""
    train = {frozenset(options(item)) for item in task_items(task, difficulty, "train", 2048)}
    held_out = {frozenset(options(item)) for item in task_items(task, difficulty, "held-out", 400)}

    assert (2048, 400) == (len(train), len(held_out))
    assert set() == train & held_out


@EVERY_TASK
@BOTH_DIFFICULTIES
def test_answer_positions_are_balanced(task: str, difficulty: Difficulty) -> None:
    """Always naming one position is right a quarter of the time, under any limit of items."""
    items = task_items(task, difficulty, "held-out", 102)

    assert {0: 26, 1: 26, 2: 25, 3: 25} == Counter(item.answer for item in items)


@BOTH_DIFFICULTIES
def test_longest_word_is_the_only_longest(difficulty: Difficulty) -> None:
    """The right word is longer than the others, by two letters at least if easy and by one if hard."""
    for item in task_items("longest-word", difficulty, "train", 200):
        others = {len(word) for index, word in enumerate(item.choices) if index != item.answer}
        lead = len(item.choices[item.answer]) - max(others)
        assert item.choices == tuple(options(item))
        assert lead >= 2 if difficulty == "easy" else (lead, len(others)) == (1, 1)


@BOTH_DIFFICULTIES
def test_largest_number_is_named_by_its_letter(difficulty: Difficulty) -> None:
    """The letter of the answer stands before the largest number."""
    for item in task_items("largest-number", difficulty, "train", 200):
        numbers = [int(number) for number in options(item)]
        assert numbers[item.answer] == max(numbers)
        assert item.choices == LETTERS
        assert item.completion == f" {LETTERS[item.answer]}"


@BOTH_DIFFICULTIES
def test_first_in_alphabet_is_first(difficulty: Difficulty) -> None:
    """The answer sorts first; in hard items all words share their first letter."""
    for item in task_items("first-in-alphabet", difficulty, "train", 200):
        assert item.choices[item.answer] == min(item.choices)
        assert len({word[0] for word in item.choices}) == (4 if difficulty == "easy" else 1)


def test_items_are_the_same_every_time_and_grow_by_appending() -> None:
    """Asking for more items leaves the first ones as they were."""
    assert (
        task_items("longest-word", "easy", "train", 20)
        == task_items("longest-word", "easy", "train", 50)[:20]
    )


def test_the_first_item_is_what_it_was() -> None:
    """A changed generator would silently change what stored results were measured on."""
    expected = TaskItem(prompt="A) 58 B) 72 C) 30 D) 27\nLargest number:", choices=LETTERS, answer=1)

    assert expected == task_items("largest-number", "easy", "train", 2)[1]


def test_an_item_belongs_to_one_set_in_any_order() -> None:
    """The order of the options does not move an item from one set to the other."""
    parts = [belongs_to("longest-word", [str(n), "b", "a"]) for n in range(800)]
    reordered = [belongs_to("longest-word", ["a", str(n), "b"]) for n in range(800)]

    assert parts == reordered
    assert 60 < parts.count("held-out") < 140


def test_an_unknown_task_is_refused_with_the_names() -> None:
    """The message says which tasks there are."""
    with pytest.raises(UsageError, match=r"no built-in task 'longest-wrod'; choose one of longest-word, "):
        task_items("longest-wrod", "easy", "train", 1)


def test_asking_for_more_items_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small task ends in a sentence, not in repeated items or an endless loop."""

    def draw(random: Random, _difficulty: Difficulty) -> Sequence[str]:
        return [str(number) for number in random.sample(range(5), 4)]

    tiny = Task(draw=draw, ask=",".join, lettered=True)
    monkeypatch.setitem(tasks.TASKS, "tiny", tiny)

    with pytest.raises(UsageError, match=r"Task tiny \(easy\) has \d train items, not 6; lower"):
        task_items("tiny", "easy", "train", 6)


def test_scenarios_may_name_every_task() -> None:
    """The names that a scenario is checked against are those of the tasks."""
    assert catalogue.TASKS == tuple(TASKS)


def test_words_are_distinct_and_plain() -> None:
    """A word that stood twice could make two options the same."""
    assert len(WORDS) == len(set(WORDS))
    assert all(word.isascii() and word.islower() and word.isalpha() for word in WORDS)


def test_mmlu_questions_are_281_real_ones() -> None:
    """Count, subjects, a known question and its answer."""
    questions = mmlu_questions()
    ring = next(row for row in questions if row["question"].endswith("the characteristic of the ring 2Z."))

    assert (281, 57) == (len(questions), len({row["subject"] for row in questions}))
    assert (["0", "3", "12", "30"], 0) == (ring["choices"], ring["answer"])
    assert {0, 1, 2, 3} == {row["answer"] for row in questions}
    assert all("\nA:" not in choice for row in questions for choice in row["choices"])
    assert ring["introduction"] == (
        "The following are multiple choice questions (with answers) about abstract algebra."
    )
