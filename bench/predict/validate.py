"""Predictions of rows, each in a worker process: whoever asks for them never imports torch."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from fnmatch import fnmatch
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from queue import SimpleQueue
from typing import Any

from bench.errors import BenchError, UsageError
from bench.metrics import GIB
from bench.predict.pool import Progress, cores, ignored
from bench.records.predictions import Prediction, Refusal, Speed
from bench.records.published import Row, RowFile
from bench.records.published.score import Outcome, Validation, score
from bench.scenario.catalogue import card
from bench.scenario.cell import Cell

TRACED_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


def validate(files: Sequence[RowFile], progress: Progress = ignored) -> Validation:
    """Predict every row that can be expressed, in each loop it has, and hold it against what was measured."""
    rows = [one for file in files for row in file.rows for one in row.each_loop]
    expressible = [row for row in rows if row.refused is None]
    outcomes = dict(zip(map(_key, expressible), each_apart(predict_row, expressible, progress), strict=True))
    return Validation(
        versions={name: version(name) for name in TRACED_LIBRARIES},
        sources=tuple(file.source for file in files),
        rows=score(rows, lambda row: outcomes[_key(row)]),
    )


def each_apart(
    predict: Callable[[Any], Outcome], rows: Sequence[Any], progress: Progress = ignored
) -> list[Outcome]:
    """Return what is predicted for each row, in as many processes as there are cores.

    A process that is ended, as one that runs out of memory is, costs the row that it was at.
    """
    new = partial(ProcessPoolExecutor, 1, get_context("spawn"))
    idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
    for _ in range(cores()):
        idle.put(new())

    def one(row: Any) -> Outcome:
        process = idle.get()
        try:
            return process.submit(predict, row).result()
        except BrokenProcessPool:
            process = new()
            return Refusal(message=_ENDED)
        finally:
            idle.put(process)

    progress(0, len(rows))
    made: list[Outcome] = []
    with ThreadPoolExecutor(cores()) as threads:
        for outcome in threads.map(one, rows):
            made.append(outcome)
            progress(len(made), len(rows))
    while not idle.empty():
        idle.get().shutdown()
    return made


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
        prediction = prediction.model_copy(update={"speeds": tuple(_speeds(row, row.cell))})
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


def _speeds(row: Row, cell: Cell) -> Iterator[Speed]:
    """Yield the speed predicted for each that was measured, at its length and counted as it was."""
    from bench.predict.families import families, streams
    from bench.predict.speed.kernels import constants
    from bench.predict.speed.predict import speeds_of
    from bench.predict.trace.trace import Tracer, at_length, worst_batch
    from bench.training.loading.models import configuration_of

    patterns = [one for had in constants()["calibration"]["cards"].values() for one in had["rows"]]
    had = any(fnmatch(f"{row.source}/{row.name}", one) for one in patterns)
    for measured in row.speeds:
        try:
            named = card(row.gpu)
        except UsageError as error:
            yield Speed(card=row.gpu, refused=str(error))
            continue
        own = at_length(cell, measured.length or cell.training.sequence_length)
        config = configuration_of(own.model)
        tracer = Tracer(row.platform, config, timed=True)
        if own.parallel.several:
            stream = tracer.trace_rank(own, 0)
        else:
            (family,) = families([own], config)
            ((_, stream, _),) = streams(family, tracer)
        speed, without = (
            speeds_of(stream, own, config, (named,), without=source)[0] for source in ("", row.source)
        )
        rates = {"low": speed.low, "point": speed.point, "high": speed.high, "held_out": without.point}
        if measured.counted == "non_padding":
            mask = worst_batch(own, int(config.get_text_config().vocab_size)).attention_mask
            share = 1.0 if mask is None else float(mask.float().mean())
            rates = {name: rate * share for name, rate in rates.items()}
        yield speed.model_copy(update={**rates, "calibrated_on": had and not speed.refused, "dearest": ()})


_ENDED = "The process that predicted it was ended, as the system does where memory runs out."
_NEVER_EMPTIED = (
    "its loop never empties the allocator's cache, so what is reserved after thousands of steps depends on "
    "their order."
)


def _without_reserved(row: Row, prediction: Prediction, why: str) -> Outcome:
    """Take back what is said of reserved memory where that grows for longer than is replayed."""
    if any(one.metric != "reserved" for one in row.sizes):
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
