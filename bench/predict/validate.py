"""Predictions of rows, each in a worker process: whoever asks for them never imports torch."""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context

from bench.errors import BenchError
from bench.metrics import GIB
from bench.records.predictions import Prediction, Refusal
from bench.records.published import Row, RowFile
from bench.records.published.score import Outcome, Validation, score

TRACED_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


def validate(files: Sequence[RowFile]) -> Validation:
    """Predict every row that can be expressed, in each loop it has, and hold it against what was measured."""
    rows = [one for file in files for row in file.rows for one in row.each_loop]
    expressible = [row for row in rows if row.refused is None]
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(max_workers=cores, mp_context=get_context("spawn")) as pool:
        outcomes = dict(zip(map(_key, expressible), pool.map(predict_row, expressible), strict=True))
    return Validation(
        versions={name: version(name) for name in TRACED_LIBRARIES},
        sources=tuple(file.source for file in files),
        rows=score(rows, lambda row: outcomes[_key(row)]),
    )


def predict_row(row: Row) -> Outcome:
    """Predict one row in this process, or say why not. An error of this suite's own is named as such."""
    from bench.training.jobs import quiet_libraries

    quiet_libraries()  # before the imports that have something to say
    warnings.simplefilter("ignore")  # a prediction runs nothing that they could be about
    from bench.predict.allocator.settings import AllocatorSettings
    from bench.predict.predict import predict
    from bench.predict.varying import lengths_vary

    if row.cell is None:
        raise ValueError(f"{row.name} has no cell to predict")
    try:
        settings = AllocatorSettings.parse(row.allocator)
        prediction = predict(row.cell, row.platform, settings, row.steps)
        settled = row.cell.training.empty_cache_steps or settings.expandable_segments
        if row.varies:
            return _without_reserved(row, prediction, "a library's loop is replayed over equal ones alone.")
        if lengths_vary(row.cell) and not settled:
            return _without_reserved(row, prediction, _NEVER_EMPTIED)
    except BenchError as error:
        return Refusal(message=str(error))
    except Exception as error:  # noqa: BLE001 - one row's failure must not lose the others
        reason = " ".join(str(error).split())[:300]
        return Refusal(message=f"An error of this suite: {type(error).__name__}: {reason}")
    return prediction


_NEVER_EMPTIED = (
    "its loop never empties the allocator's cache, so what is reserved after thousands of steps depends on "
    "their order."
)


def _without_reserved(row: Row, prediction: Prediction, why: str) -> Outcome:
    """Take back what is said of reserved memory where that grows for longer than is replayed."""
    if any(one.metric != "reserved" for one in row.measured):
        gone = dict.fromkeys(("reserved_peak_bytes", "reserved_low_bytes", "reserved_high_bytes"))
        return prediction.model_copy(update=gone)
    allocated, low, high = (
        (size or 0) / GIB
        for size in (
            prediction.allocated_peak_bytes,
            prediction.reserved_low_bytes,
            prediction.reserved_high_bytes,
        )
    )
    return Refusal(
        message=f"Its batches differ in length, and {why} A replay of a few steps allocates "
        f"{allocated:.2f} GiB and reserves {low:.2f} to {high:.2f} GiB or more. If its lengths do not vary, "
        'set data.lengths = "equal".'
    )


def _key(row: Row) -> tuple[str, str, bool]:
    return row.source, row.name, row.cell is row.looped
