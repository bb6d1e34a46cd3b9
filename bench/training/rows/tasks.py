"""Tasks that need no network: built-in skills with multiple-choice items, and 281 questions of MMLU.

Items of a built-in task are drawn by a seeded generator. Training and held-out items cannot overlap: the hash
of an item's options says which set it belongs to, whatever their order. lm-eval is given its tasks as
configurations, without YAML, download or cache. No torch and no tokenizer here.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from operator import itemgetter
from random import Random
from typing import Any, Literal, TypeVar

from bench.errors import InfrastructureError, UsageError
from bench.io import own_text, parse_json
from bench.scenario.types import DataSpec, TaskData

Difficulty = Literal["easy", "hard"]
Part = Literal["train", "held-out"]
CHOICES = 4
LETTERS = ("A", "B", "C", "D")
_HELD_OUT_SHARE = 1 / 8
_Key = TypeVar("_Key", bound=Hashable)
_DRAWS_WITHOUT_A_NEW_ITEM = 20_000  # by then a set is taken to be exhausted
MMLU_QUESTIONS = 281
_MMLU_FILE = "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
_MMLU_QUESTION = re.compile(
    r"(.*?)\n\(A\)\s*(.*?)\s*\(B\)\s*(.*?)\s*\(C\)\s*(.*?)\s*\(D\)\s*(.*?)\n"
    r"A:.*?[Tt]he answer is \(?([ABCD])\)?",
    re.DOTALL,
)
_FEWSHOT_ITEMS = 64  # as many as a scenario may ask for

# Common English nouns and adjectives of three to nine letters; their order decides what is drawn.
WORDS = tuple(own_text("bench.training.rows", "words.txt").split())


@dataclass(frozen=True, kw_only=True)
class TaskItem:
    """One question: the prompt, what may follow it, and the index of the right choice."""

    prompt: str
    choices: tuple[str, ...]
    answer: int

    @property
    def completion(self) -> str:
        """What follows the prompt when it is answered right."""
        return f" {self.choices[self.answer]}"

    @property
    def wrong(self) -> str:
        """What follows it when it is answered wrong, by the option after the right one."""
        return f" {self.choices[(self.answer + 1) % len(self.choices)]}"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A skill. ``draw`` returns the right option first; ``ask`` makes a prompt of options in order.

    ``lettered`` tasks are answered with the letter of an option, the others with the option itself.
    """

    draw: Callable[[Random, Difficulty], Sequence[str]]
    ask: Callable[[Sequence[str]], str]
    lettered: bool


def belongs_to(task: str, options: Sequence[str]) -> Part:
    """Return the set to which an item with these options belongs, in whatever order they stand."""
    content = "\n".join((task, *sorted(options)))
    share = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8]) / 2**64
    return "held-out" if share < _HELD_OUT_SHARE else "train"


def task_items(task: str, difficulty: Difficulty, part: Part, count: int) -> tuple[TaskItem, ...]:
    """Return the first ``count`` items of one set; raises ``UsageError`` if there are not so many."""
    if task not in TASKS:
        raise UsageError(f"There is no built-in task {task!r}; choose one of {', '.join(TASKS)}.")
    items = tuple(islice(_draw_items(task, difficulty, part), count))
    if len(items) < count:
        raise UsageError(
            f"Task {task} ({difficulty}) has {len(items)} {part} items, not {count}; "
            "lower data.train_items or data.held_out_items."
        )
    return items


def _draw_items(task: str, difficulty: Difficulty, part: Part) -> Iterator[TaskItem]:
    """Yield distinct items; the right choice takes each position in turn, so the positions are balanced."""
    skill = TASKS[task]
    random = Random(f"{task}/{difficulty}/{part}")
    seen: set[frozenset[str]] = set()
    misses = 0
    while misses < _DRAWS_WITHOUT_A_NEW_ITEM:
        answer, *others = skill.draw(random, difficulty)
        content = frozenset((answer, *others))
        if content in seen or belongs_to(task, sorted(content)) != part:
            misses += 1
            continue
        position = len(seen) % CHOICES
        seen.add(content)
        misses = 0
        random.shuffle(others)
        options = (*others[:position], answer, *others[position:])
        yield TaskItem(
            prompt=skill.ask(options), choices=LETTERS if skill.lettered else options, answer=position
        )


def _draw_longest_word(random: Random, difficulty: Difficulty) -> Sequence[str]:
    """Easy: two letters longer than all the others; hard: the others are all one letter shorter."""
    length = random.randrange(5, 10)
    if difficulty == "easy":
        shorter = [word for shorter in range(3, length - 1) for word in _WORDS_OF_LENGTH[shorter]]
    else:
        shorter = _WORDS_OF_LENGTH[length - 1]
    return [random.choice(_WORDS_OF_LENGTH[length]), *random.sample(shorter, CHOICES - 1)]


def _draw_largest_number(random: Random, difficulty: Difficulty) -> Sequence[str]:
    """Easy: two digits, the tens all different; hard: four digits, the first two the same."""
    if difficulty == "easy":
        numbers = [10 * tens + random.randrange(10) for tens in random.sample(range(1, 10), CHOICES)]
    else:
        start = 100 * random.randrange(10, 100)
        numbers = random.sample(range(start, start + 100), CHOICES)
    return [str(number) for number in sorted(numbers, reverse=True)]


def _draw_first_in_alphabet(random: Random, difficulty: Difficulty) -> Sequence[str]:
    """Easy: four different first letters; hard: the same first letter and four different second ones."""
    start = "" if difficulty == "easy" else random.choice(_BRANCHING_LETTERS)
    branches = _BRANCHES[start]
    letters = sorted(random.sample(sorted(branches), CHOICES))
    return [random.choice(branches[letter]) for letter in letters]


def _group(words: Iterable[str], key: Callable[[str], _Key]) -> dict[_Key, list[str]]:
    groups: defaultdict[_Key, list[str]] = defaultdict(list)
    for word in words:
        groups[key(word)].append(word)
    return groups


_WORDS_OF_LENGTH = _group(WORDS, len)
# Words by the letter that follows a start: of all words, and of the words with each first letter.
_BRANCHES = {
    start: _group((word for word in WORDS if word.startswith(start)), itemgetter(len(start)))
    for start in ("", *sorted({word[0] for word in WORDS}))
}
_BRANCHING_LETTERS = [start for start, branches in _BRANCHES.items() if start and len(branches) >= CHOICES]

TASKS: dict[str, Task] = {
    "longest-word": Task(
        draw=_draw_longest_word,
        ask=lambda options: f"Words: {', '.join(options)}\nLongest:",
        lettered=False,
    ),
    "largest-number": Task(
        draw=_draw_largest_number,
        ask=lambda options: " ".join(map("{}) {}".format, LETTERS, options)) + "\nLargest number:",
        lettered=True,
    ),
    "first-in-alphabet": Task(
        draw=_draw_first_in_alphabet,
        ask=lambda options: f"Words: {', '.join(options)}\nFirst in the alphabet:",
        lettered=False,
    ),
}


def held_out_task(data: DataSpec) -> dict[str, Any]:
    """Return the held-out set of a built-in task; few-shot examples come from its training items."""
    if not isinstance(data, TaskData):
        raise UsageError("Evaluation task held-out needs data.source task; remove it or set a built-in task.")
    parts = {
        "test": task_items(data.task, data.difficulty, "held-out", data.held_out_items),
        "train": task_items(data.task, data.difficulty, "train", _FEWSHOT_ITEMS),
    }
    return task_of(
        "held-out",
        {name: [asdict(item) for item in items] for name, items in parts.items()},
        fewshot_split="train",
        doc_to_text="{{prompt}}",
        doc_to_choice="{{choices}}",
    )


def mmlu_task() -> dict[str, Any]:
    """Return MMLU (Hendrycks et al. 2021, arXiv 2009.03300) as lm-eval asks it, on the 281 questions.

    They are the development questions of its 57 subjects, which models may have seen as few-shot examples.
    """
    return task_of(
        "mmlu-281",
        {"test": mmlu_questions()},
        doc_to_text="{{introduction}}\n\n{{question}}\nA. {{choices[0]}}\nB. {{choices[1]}}\n"
        "C. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
        doc_to_choice=list(LETTERS),
    )


def task_of(name: str, splits: Mapping[str, list[dict[str, Any]]], **fields: object) -> dict[str, Any]:
    """Return lm-eval's configuration of a task whose documents are given; by default they have choices."""

    def dataset(**_: object) -> dict[str, Any]:
        import datasets

        return {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}

    return {
        "task": name,
        "custom_dataset": dataset,
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **fields,
    }


def mmlu_questions() -> list[dict[str, Any]]:
    """Parse the questions from the installed lm-eval; raises ``InfrastructureError`` if they are not 281."""
    try:
        subjects = parse_json(own_text("lm_eval", _MMLU_FILE))
    except (OSError, ValueError) as error:
        raise InfrastructureError(
            f"The installed lm-eval does not carry {_MMLU_FILE}; install lm-eval 0.4.13 or drop mmlu-281."
        ) from error
    questions = [
        {
            "subject": subject,
            "introduction": introduction.strip(),
            "question": match[1].strip(),
            "choices": [match[number].strip() for number in (2, 3, 4, 5)],
            "answer": LETTERS.index(match[6]),
        }
        for subject, text in subjects.items()
        for introduction, *blocks in [re.split(r"\n*Q: ", text)]
        for match in map(_MMLU_QUESTION.match, blocks)
        if match
    ]
    if len(questions) != MMLU_QUESTIONS:
        raise InfrastructureError(
            f"The installed lm-eval carries {len(questions)} MMLU questions instead of {MMLU_QUESTIONS}; "
            "install lm-eval 0.4.13 or drop mmlu-281."
        )
    return questions
