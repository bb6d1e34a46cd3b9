"""Rows of the user's own as questions: the answers that training never saw, asked for by lm-eval.

Where a file has few different answers, as a classifier's, the likeliest of them counts. Other answers have to
be short: they are written by the model, greedily, and right where they are the same. Of prose that would say
nothing, and it is refused.
"""

from collections.abc import Collection, Sequence
from statistics import median
from typing import Any

from bench.errors import UsageError
from bench.scenario.types import JsonlData
from bench.training.rows.examples import Example, load_examples
from bench.training.rows.row_layouts import Answer, Chat, Instruction, Row
from bench.training.rows.rows import read_rows
from bench.training.rows.tasks import task_of

MOST_CHOICES = 20
MOST_WORDS = 16
_SPARE_TOKENS = 8


def task_of_rows(data: JsonlData, tokenizer: Any) -> dict[str, Any]:
    """Return lm-eval's configuration of the rows that ``data.held_out`` names.

    Raises ``UsageError`` where the file is not such rows, or its answers are prose.
    """
    rows = data.held_out_rows
    if rows is None:
        raise UsageError(
            "Evaluation task held-out needs data.held_out, a file of rows that are not trained on."
        )
    check_held_out(rows)
    asked = [_question(example, tokenizer) for example in load_examples(rows, tokenizer).examples]
    choices = sorted({completion for _, completion, _ in asked})
    if _chosen(choices, len(asked)):
        documents = [
            {"prompt": prompt, "answer": choices.index(completion)} for prompt, completion, _ in asked
        ]
        return task_of(
            "held-out",
            {"test": documents},
            doc_to_text="{{prompt}}",
            doc_to_choice=choices,
            target_delimiter="",
        )
    answers = [answer for _, _, answer in asked]
    return task_of(
        "held-out",
        {"test": [{"prompt": prompt, "answer": answer} for prompt, _, answer in asked]},
        doc_to_text="{{prompt}}",
        output_type="generate_until",
        generation_kwargs={
            "until": [],
            "do_sample": False,
            "max_gen_toks": _SPARE_TOKENS + max(len(tokenizer(answer)["input_ids"]) for answer in answers),
        },
        process_results=_same,
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )


def check_held_out(rows: JsonlData) -> None:
    """Raise ``UsageError`` for rows that cannot be asked about, before anything is loaded."""
    answers = []
    for line, row in read_rows(rows).rows:
        answer = _answer(row)
        if not answer.strip():
            raise UsageError(
                f"{rows.path}, line {line}: data.held_out asks, and this row has no question with an answer; "
                "give rows of both."
            )
        answers.append(answer)
    words = median(len(answer.split()) for answer in answers)
    if words > MOST_WORDS and not _chosen(set(answers), len(answers)):
        raise UsageError(
            f"data.held_out: half the answers of {rows.path} have {words:.0f} words or more, which no model "
            "writes alike; name the file in evaluation.text, for its loss, and remove held-out."
        )


def _chosen(answers: Collection[str], rows: int) -> bool:
    """Whether answers are so few that the likeliest of them is asked for."""
    return 1 < len(answers) <= min(MOST_CHOICES, rows // 2)


def _answer(row: Row) -> str:
    match row:
        case Instruction():
            return row.response
        case Answer():
            return row.completion if row.prompt else ""
        case Chat():
            return str(row.messages[-1].get("content") or "")
        case _:
            return ""


def trained_too(data: JsonlData, tokenizer: Any) -> tuple[int, int]:
    """Return how many held-out rows are also trained on, and how many there are."""
    rows = data.held_out_rows
    if rows is None:
        return 0, 0
    trained = {example.text for example in load_examples(data, tokenizer).examples}
    texts = [example.text for example in load_examples(rows, tokenizer).examples]
    return sum(text in trained for text in texts), len(texts)


def _question(example: Example, tokenizer: Any) -> tuple[str, str, str]:
    """Return what is asked, what is to follow with the tokens that end it, and the answer alone."""
    last = max(place for place, segment in enumerate(example.segments) if segment.trained)
    prompt = "".join(segment.text for segment in example.segments[:last])
    answer = completion = example.segments[last].text
    for token in tokenizer.all_special_tokens:
        answer = answer.replace(token, "")
    return prompt, completion + (tokenizer.eos_token or "") * example.append_end, answer.strip()


def _same(document: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Compare what was written with the answer; of an answer in one line, the first that was written."""
    written, answer = results[0].strip(), document["answer"]
    if "\n" not in answer:
        written = written.partition("\n")[0].strip()
    return {"exact_match": float(written == answer)}
