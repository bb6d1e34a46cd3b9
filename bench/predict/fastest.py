"""The fastest settings that fit on a card: batches up to the largest, with checkpointing and without."""

from collections.abc import Iterator
from dataclasses import replace

from bench.predict.fit import FitRequest, Line, find_bounds
from bench.predict.plan import spread_over
from bench.predict.pool import PRELOAD, PredictionRequest, Progress, platform_of, predict_cells
from bench.records.predictions import Bound, Fit, Prediction, Setting
from bench.scenario.load import named_model
from bench.workers.launch import Launcher


def find_fastest(request: FitRequest, progress: Progress, launcher: Launcher | None = None) -> Fit:
    """Return the largest batches of a request, and how fast settings train that fit.

    Besides the checkpointing asked for, the other choice of with and without is searched. Of each, batches
    of one, two, four and so on are tried, and the largest; what fits at the largest fits below. Raises
    ``UsageError`` as ``find_bounds`` does.
    """
    launcher = launcher or Launcher(preload=PRELOAD)
    own = request.training.gradient_checkpointing
    kinds = (own, "non-reentrant" if own == "off" else "off")
    requests = [
        replace(
            request,
            axes=("micro_batch",),
            advice=kind == own,
            training=request.training.model_copy(update={"gradient_checkpointing": kind}),
        )
        for kind in kinds
    ]
    fits = [find_bounds(one, progress, launcher) for one in requests]
    tried = [
        (one, bound, batch)
        for one, fit in zip(requests, fits, strict=True)
        for bound in fit.bounds
        for batch in _batches(bound)
    ]
    platform = platform_of("cuda", request.card.capability, request.torch_version)
    asked = [
        PredictionRequest(cell=_line(one, bound).at(batch), platform=platform, cards=(request.card,))
        for one, bound, batch in tried
    ]
    predict = request.kept.predict if request.kept else predict_cells
    found = predict(asked, launcher, allocator=request.allocator, progress=progress)
    settings = (
        Setting(
            method=bound.method,
            gradient_checkpointing=one.training.gradient_checkpointing,
            sequence_length=bound.sequence_length,
            micro_batch=batch,
            gpus=bound.gpus,
            speed=prediction.speeds[0],
        )
        for (one, bound, batch), prediction in zip(tried, found, strict=True)
        if isinstance(prediction, Prediction)
    )
    return fits[0].model_copy(update={"settings": tuple(settings)})


def _batches(bound: Bound) -> Iterator[int]:
    """Yield each power of two below the largest batch that fits, and that batch."""
    largest = bound.fits.value if bound.fits else 0
    yield from (1 << power for power in range(largest.bit_length()) if 1 << power < largest)
    if largest:
        yield largest


def _line(request: FitRequest, bound: Bound) -> Line:
    """Return the batches at a length, all rows as long as the longest: speed is told of the full length."""
    model, _ = named_model(request.model)
    cell = spread_over(request.cell(model, bound.method, bound.sequence_length, 1), bound.gpus)
    return Line(cell=cell, axis="micro_batch", step=1, limit=bound.limit, rough=request.data == "padded")
