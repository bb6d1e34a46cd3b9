"""lm-eval tasks that need no network, as configurations without YAML, download or cache.

The held-out set of a built-in task, and the 281 MMLU questions that lm-eval's own package carries.
"""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from bench.errors import InfrastructureError, UsageError
from bench.scenario.types import DataSpec, TaskData
from bench.training.tasks import TaskItem, held_out_items, training_items

MMLU_QUESTIONS = 281
_MMLU_FILE = "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
_MMLU_QUESTION = re.compile(
    r"(.*?)\n\(A\)\s*(.*?)\s*\(B\)\s*(.*?)\s*\(C\)\s*(.*?)\s*\(D\)\s*(.*?)\n"
    r"A:.*?[Tt]he answer is \(?([ABCD])\)?",
    re.DOTALL,
)
_FEWSHOT_ITEMS = 64  # as many as a scenario may ask for
_ACCURACY = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]


def held_out_task(data: DataSpec) -> dict[str, Any]:
    """Return the held-out set of a built-in task; few-shot examples come from its training items."""
    if not isinstance(data, TaskData):
        raise UsageError("Evaluation task held-out needs data.source task; remove it or set a built-in task.")
    splits = {
        "test": [_document(item) for item in held_out_items(data.task, data.difficulty, data.held_out_items)],
        "train": [_document(item) for item in training_items(data.task, data.difficulty, _FEWSHOT_ITEMS)],
    }
    return {
        "task": "held-out",
        "custom_dataset": lambda **_: _dataset(splits),
        "test_split": "test",
        "fewshot_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": _ACCURACY,
    }


def mmlu_task() -> dict[str, Any]:
    """Return MMLU (Hendrycks et al. 2021, arXiv 2009.03300) as lm-eval asks it, on the 281 questions.

    They are the development questions of its 57 subjects, which models may have seen as few-shot examples.
    """
    splits = {"test": mmlu_questions()}
    return {
        "task": "mmlu-281",
        "custom_dataset": lambda **_: _dataset(splits),
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{introduction}}\n\n{{question}}\nA. {{choices[0]}}\nB. {{choices[1]}}\n"
        "C. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "{{answer}}",
        "metric_list": _ACCURACY,
    }


def mmlu_questions() -> list[dict[str, Any]]:
    """Parse the questions from the installed lm-eval; raises ``InfrastructureError`` if they are not 281."""
    try:
        subjects = json.loads(files("lm_eval").joinpath(_MMLU_FILE).read_text(encoding="utf-8"))
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
            "answer": "ABCD".index(match[6]),
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


def _document(item: TaskItem) -> dict[str, Any]:
    return {"prompt": item.prompt, "choices": list(item.choices), "answer": item.answer}


def _dataset(splits: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    import datasets

    return {name: datasets.Dataset.from_list(list(rows)) for name, rows in splits.items()}
