"""Where examples come from: a built-in task, a local file of JSON lines, or a data set on the hub.

Rows are checked one by one; a mistake names the file and the line, and never repeats its content.
"""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.errors import UnavailableError, UsageError
from bench.scenario.types import HubData, JsonlData, TaskData
from bench.training.tasks import training_items
from bench.training.templates import ROWS, TEMPLATES, Example, FormatName, Row, Segment

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


def load_examples(data: TaskData | JsonlData | HubData, tokenizer: Any) -> list[Example]:
    """Return the data's training examples, in its own order.

    Raises ``UsageError`` for data that is wrong or empty, ``UnavailableError`` if the hub cannot be reached.
    """
    match data:
        case TaskData():
            examples = _task_examples(data)
        case JsonlData():
            examples = [TEMPLATES[data.template](row, tokenizer) for row in read_jsonl(data)]
        case HubData():
            examples = [TEMPLATES[data.template](row, tokenizer) for row in read_hub(data)]
    if data.train_on == "all":
        return [_all_trained(example) for example in examples]
    return examples


def read_jsonl(data: JsonlData) -> list[Row]:
    """Read and check a local file of JSON lines; blank lines are passed over."""
    path = Path(data.path)
    try:
        with path.open(encoding="utf-8") as lines:
            rows = list(islice(_parsed(lines, data.format, data.path), data.max_items))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(f"Cannot read the data file {data.path} ({reason}); correct data.path.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The data file {data.path} is not UTF-8 text; convert it.") from error
    if not rows:
        raise UsageError(f"The data file {data.path} holds no rows; give one JSON object per line.")
    return rows


def read_hub(data: HubData) -> list[Row]:
    """Download (or take from the cache) a hub data set and check its rows.

    Only data files are read: a local path is refused, since the datasets library would take a script there.
    """
    if not _HUB_ID.fullmatch(data.dataset) or Path(data.dataset).exists():
        raise UsageError(
            f"{data.dataset!r} is not the id of a data set on the hub; give owner/name, or use source jsonl."
        )
    import datasets

    split = data.split if data.max_items is None else f"{data.split}[:{data.max_items}]"
    try:
        table = datasets.load_dataset(data.dataset, name=data.config, split=split, revision=data.revision)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise UnavailableError(
            f"The data set {data.dataset} cannot be fetched ({_first_line(error)}); connect this machine "
            "to the hub once so that it is cached, or use source jsonl with a local copy."
        ) from error
    except ValueError as error:  # what the library raises for an unknown configuration or split
        raise UsageError(
            f"The data set {data.dataset} cannot be read ({_first_line(error)}); "
            "correct data.config or data.split."
        ) from error
    rows = [_checked(fields, data.format, f"{data.dataset}, row {n}") for n, fields in enumerate(table)]
    if not rows:
        raise UsageError(f"The data set {data.dataset} holds no rows in split {data.split}; choose another.")
    return rows


def _task_examples(data: TaskData) -> list[Example]:
    """Task items end with the answer, where the evaluation stops reading: no end token is added."""
    return [
        Example(
            segments=(Segment(item.prompt, trained=False), Segment(item.completion, trained=True)),
            append_end=False,
        )
        for item in training_items(data.task, data.difficulty, data.train_items)
    ]


def _parsed(lines: Iterable[str], row_format: FormatName, path: str) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: not a JSON object; give one object per line.") from error
        yield _checked(fields, row_format, where)


def _checked(fields: object, row_format: FormatName, where: str) -> Row:
    try:
        return ROWS[row_format].model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the row"
        raise UsageError(
            f"{where}: {key}: {first['msg']}; correct it, or data.format (now {row_format})."
        ) from error


def _all_trained(example: Example) -> Example:
    return Example(
        segments=(Segment(example.text, trained=True),),
        special_tokens=example.special_tokens,
        append_end=example.append_end,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
