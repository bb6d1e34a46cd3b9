"""The largest batch, sequence length and rank that fit on a card, searched for with predictions.

Memory grows along each axis, so a search closes in from both sides; it ends with one value that was
predicted to fit and the next, predicted not to. All searches go on side by side, a round at a time.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pydantic import ValidationError

from bench.errors import UsageError
from bench.predict.allocator.settings import AllocatorSettings
from bench.predict.kept import Kept
from bench.predict.plan import spread_over
from bench.predict.pool import (
    PRELOAD,
    Predict,
    PredictionRequest,
    Progress,
    find_savers,
    platform_of,
    predict_cells,
)
from bench.records.predictions import Axis, Bound, Fit, Prediction, Refusal, Tried, check_fit
from bench.scenario.catalogue import Card, card, card_of_memory
from bench.scenario.cell import Cell
from bench.scenario.load import MOST_RANK, limits_of, named_model
from bench.scenario.platform import Platform
from bench.scenario.types import FullMethod, ModelSpec, SyntheticData, TrainingSpec
from bench.workers.launch import Launcher

LENGTH_STEP = 64
RANK_STEP = 8
MOST_SEQUENCES = 4096
CHORDS = 8  # predictions after which a search halves as well
LONGEST_LEAP = 16  # times as far as anything known to fit
METHODS = ("full", "lora", "qlora")
_ROWS = {"source": "jsonl", "path": "data.jsonl"}
DATA: dict[str, tuple[dict[str, str], str, str]] = {
    "padded": (
        _ROWS,
        "pad-to-longest",
        "rows of different lengths, so that a micro-batch above 1 has an attention mask",
    ),
    "packed": (_ROWS, "pack", "several rows packed in each sequence"),
    "full": (
        {"source": "synthetic"},
        "pad-to-longest",
        "every row of the full length, without an attention mask",
    ),
}
"""By name: what a scenario's [data] and training.batching would say, and that in words."""


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """What to fit where. ``lengths`` are those at which the largest batch is asked for.

    ``gpus`` are numbers of cards to spread it over by fsdp2; with others than one the batch alone is asked
    for. ``advice`` tries what would make a method fit on one card that does not.
    """

    model: str
    card: Card
    methods: tuple[str, ...]
    rank: int
    micro_batch: int
    lengths: tuple[int, ...]
    training: TrainingSpec
    data: str = "padded"
    kbit_preparation: bool = True
    allocator: str = ""
    torch_version: str | None = None
    axes: tuple[Axis, ...] = ("micro_batch", "sequence_length", "rank")
    gpus: tuple[int, ...] = (1,)
    advice: bool = True
    kept: Kept | None = None

    def cell(self, model: ModelSpec, method: str, length: int, micro_batch: int) -> Cell:
        """Return the cell to begin a search at; raise ``UsageError`` where the options exclude each other."""
        adapter = {} if method == "full" else {"rank": self.rank}
        if method == "qlora":
            adapter["kbit_preparation"] = self.kbit_preparation
        shape = {"sequence_length": length, "micro_batch": micro_batch}
        parts = {
            "model": model,
            "method": {"kind": method, **adapter},
            "data": DATA[self.data][0],
            "training": self.training.model_copy(update=shape),
            **{part: {} for part in ("window", "evaluation", "limits")},
        }
        try:
            return Cell.model_validate(parts | {"id": "fit", "scenario": "fit", "device": "cuda"})
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UsageError(f"these options exclude each other: {message}") from None

    @property
    def window(self) -> str:
        """What all methods share, in words."""
        training = self.training
        parts = [
            training.dtype,
            f"autocast {training.autocast}",
            f"gradient checkpointing {training.gradient_checkpointing}",
            training.optimizer,
            f"attention {training.attention}",
            f"loss {training.loss}" + (", Liger's kernels" if training.kernels == "liger" else ""),
            f"data {self.data} ({DATA[self.data][2]})",
        ]
        if "qlora" in self.methods:
            prepared = "with" if self.kbit_preparation else "without"
            parts.append(f"QLoRA in NF4 with double quantisation, {prepared} peft's k-bit preparation")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One search: the cell at each value along an axis, tried at ``start`` steps first.

    A ``rough`` one takes all rows for as long as the longest, which predicts several times faster where
    lengths vary, and a little less; so it tells where to start.
    """

    cell: Cell
    axis: Axis
    step: int
    limit: int
    start: int = 1
    rough: bool = False

    @property
    def top(self) -> int:
        """How many steps the limit allows."""
        return self.limit // self.step

    def at(self, value: int) -> Cell:
        part = "method" if self.axis == "rank" else "training"
        changed = {part: getattr(self.cell, part).model_copy(update={self.axis: value})}
        if self.rough:
            rows = changed.get("training", self.cell.training).micro_batch
            changed["data"] = SyntheticData(attention_mask="padded" if rows > 1 else "none")
        return Cell.model_validate(dict(self.cell) | changed)


Search = Generator[int, Prediction | Refusal, tuple[Bound, Prediction | None]]
"""Ends with the bound and the prediction of the first value."""


def one_card(name: str | None, size: str | None) -> Card:
    """Return the card that is named or of the memory given; raise ``UsageError`` for both or neither."""
    if (name is None) == (size is None):
        raise UsageError("give one of --gpu NAME and --memory SIZE")
    return card(name) if name is not None else card_of_memory(size or "")


def training_of(data: str = "padded", **fields: str) -> TrainingSpec:
    """Return the training that all searches share; raise ``UsageError`` naming a wrong value's choices."""
    if data not in DATA:
        raise UsageError(f'unknown data "{data}"; choose from {", ".join(DATA)}')
    try:
        return TrainingSpec.model_validate(fields | {"batching": DATA[data][1]})
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{first['loc'][0]} = {first['input']!r}: {first['msg']}") from None


def find_bounds(request: FitRequest, progress: Progress, launcher: Launcher | None = None) -> Fit:
    """Search every bound of a request, and what would make a method fit that does not.

    Raises ``UsageError`` for an unknown method, model or allocator setting, and for values that exclude
    each other.
    """
    AllocatorSettings.parse(request.allocator)
    if unknown := [name for name in request.methods if name not in METHODS]:
        raise UsageError(f'unknown method "{unknown[0]}"; choose from {", ".join(METHODS)}')
    launcher = launcher or Launcher(preload=PRELOAD)
    platform = platform_of("cuda", request.card.capability, request.torch_version)
    model, assumption = named_model(request.model)
    lines = [line for name in request.methods for line in _lines(request, model, name)]
    kept = request.kept
    predict = partial(kept.predict if kept else predict_cells, launcher=launcher, allocator=request.allocator)
    search = partial(_search_all, judged_for=request.card, platform=platform, predict=predict)
    if request.data == "padded":
        rough = search([replace(line, rough=True) for line in lines], progress=lambda *_: None)
        lines = [
            replace(line, limit=bound.limit, start=bound.fits.value // bound.step if bound.fits else 1)
            for line, (bound, _) in zip(lines, rough, strict=True)
        ]
    found = search(lines, progress=progress)
    unfit = [
        (index, line, first)
        for index, (line, (bound, first)) in enumerate(zip(lines, found, strict=True))
        if line.axis == "micro_batch" and bound.fits is None and first is not None and request.advice
        if bound.gpus == 1
    ]
    bounds = [bound for bound, _ in found]
    subjects = [(line.at(line.step), first, (request.card,)) for _, line, first in unfit]
    for (index, *_), changes in zip(unfit, find_savers(subjects, predict), strict=True):
        fitting = tuple(change for change in changes if change.verdicts[0].answer == "fits")
        bounds[index] = bounds[index].model_copy(update={"changes": fitting})
    return Fit(
        model=request.model,
        card=request.card,
        torch=platform.torch,
        allocator=request.allocator,
        window=request.window,
        assumptions=(assumption,) if assumption else (),
        bounds=tuple(bounds),
    )


def _search_all(
    lines: Sequence[Line], judged_for: Card, platform: Platform, predict: Predict, progress: Progress
) -> list[tuple[Bound, Prediction | None]]:
    """Run each line's search, side by side."""
    searches = {index: _search(line, judged_for) for index, line in enumerate(lines)}
    asked = {index: next(search) for index, search in searches.items()}
    ended: dict[int, tuple[Bound, Prediction | None]] = {}
    while asked:
        cells = [lines[index].at(value) for index, value in asked.items()]
        predicted = predict([PredictionRequest(cell=cell, platform=platform) for cell in cells])
        following: dict[int, int] = {}
        for index, one in zip(asked, predicted, strict=True):
            try:
                following[index] = searches[index].send(one)
            except StopIteration as end:
                ended[index] = end.value
        asked = following
        progress(len(ended), len(lines))
    return [ended[index] for index in range(len(lines))]


def _search(line: Line, judged_for: Card) -> Search:
    """Yield the values to predict, receive each answer, return the bound. Positions count steps."""
    tried: dict[int, Tried] = {}
    predictions: dict[int, Prediction] = {}
    refusal = None
    # What fits, trivially; what does not, or is beyond the limit.
    low, high, position = 0, line.top + 1, line.start
    while high - low > 1 and refusal is None:
        answer = yield position * line.step
        if not isinstance(answer, Prediction):
            if line.axis == "sequence_length" and answer.longest_tokens:
                line = replace(line, limit=min(line.limit, answer.longest_tokens))
                high = min(high, line.top + 1)
                position = _next_position(tried, low, high)
            else:
                refusal = answer.message
            continue
        predictions[position] = answer
        verdict = check_fit(answer, judged_for)
        tried[position] = Tried(value=position * line.step, verdict=verdict)
        low, high = (position, high) if verdict.answer == "fits" else (low, position)
        position = _next_position(tried, low, high)
    method = line.cell.method
    bound = Bound(
        method=method.name,
        axis=line.axis,
        micro_batch=line.cell.training.micro_batch,
        sequence_length=line.cell.training.sequence_length,
        rank=getattr(method, "rank", None),
        gpus=line.cell.parallel.gpus,
        step=line.step,
        limit=line.top * line.step,
        fits=tried.get(low),
        next=tried.get(high),
        refusal=refusal,
        predictions=len(predictions),
        caveats=tuple(dict.fromkeys(caveat for one in predictions.values() for caveat in one.caveats)),
    )
    return bound, predictions.get(1)


def _next_position(tried: Mapping[int, Tried], low: int, high: int) -> int:
    """Return where a straight line through two margins meets zero, since memory grows nearly linearly.

    Every other time once that has not closed in, the middle, so that the search ends whatever the curve.
    """
    fitting = sorted(position for position in tried if position <= low)
    if len(tried) > CHORDS and len(tried) % 2:
        return (low + high) // 2
    pair = (low, high) if high in tried and low in tried else tuple(fitting[-2:])
    if len(pair) < 2:  # noqa: PLR2004 - a line takes two points
        return min(low + 1, high - 1)
    first, second = pair
    margins = [tried[at].verdict.usable_bytes - tried[at].verdict.needed_bytes for at in pair]
    fallen = margins[0] - margins[1]
    meets = first + margins[0] * (second - first) // fallen if fallen > 0 else high - 1
    return max(low + 1, min(meets, high - 1, max(low, 1) * LONGEST_LEAP))


def _lines(request: FitRequest, model: ModelSpec, name: str) -> list[Line]:
    """Return a method's searches: the batch at each length, the length, and the rank if there is one."""
    positions, hidden_size = limits_of(model)
    lengths = [length for length in request.lengths if length <= positions]
    if not lengths:
        raise UsageError(f"{request.model} has {positions} positions; give a --sequence of at most that")
    lines = [
        Line(cell=spread_over(cell, gpus), axis="micro_batch", step=1, limit=MOST_SEQUENCES)
        for length in lengths
        for cell in [request.cell(model, name, length, 1)]
        for gpus in request.gpus
    ]
    if request.gpus != (1,):
        return lines
    base = request.cell(model, name, lengths[0], request.micro_batch)
    lines.append(Line(cell=base, axis="sequence_length", step=LENGTH_STEP, limit=positions))
    if not isinstance(base.method, FullMethod):
        lines.append(Line(cell=base, axis="rank", step=RANK_STEP, limit=min(MOST_RANK, hidden_size)))
    return [line for line in lines if line.axis in request.axes]
