"""Rows of the user's own as questions: the answers that training never saw, asked for by lm-eval.

Where a file has few different answers, as a classifier's, the likeliest of them counts. Other answers have to
be short: they are written by the model, greedily, and right where they are the same. Of prose that would say
nothing, and it is refused.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any

from bench.errors import UsageError
from bench.scenario.types import JsonlData
from bench.training.rows.examples import Example, load_examples
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
    asked = [_question(example, tokenizer) for example in load_examples(rows, tokenizer).examples]
    choices = sorted({completion for _, completion, _ in asked})
    if 1 < len(choices) <= min(MOST_CHOICES, len(asked) // 2):
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
    if (words := median(len(answer.split()) for answer in answers)) > MOST_WORDS:
        raise UsageError(
            f"data.held_out: half the answers of {rows.path} have {words:.0f} words or more, which no model "
            "writes alike; name the file in evaluation.text, for its loss, and remove held-out."
        )
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
    if not prompt or not answer.strip():
        raise UsageError("data.held_out: a row has no question with an answer; give rows of both.")
    return prompt, completion + (tokenizer.eos_token or "") * example.append_end, answer.strip()


def _same(document: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Compare what was written with the answer; of an answer in one line, the first that was written."""
    written, answer = results[0].strip(), document["answer"]
    if "\n" not in answer:
        written = written.partition("\n")[0].strip()
    return {"exact_match": float(written == answer)}
