"""A plan in sentences: what it says as a whole, how each number came about, what was assumed."""

from collections.abc import Collection, Iterator, Sequence

from bench.compare.plans import PlanRow, card_counts
from bench.records.plans import Plan
from bench.report.text import GIBIBYTES
from bench.scenario.platforms import Platform

WHAT_SET_IT = (
    "the operator that ran as most bytes were alive, and the nearest module that was known "
    "to be running or to own what it read; (gradients only) marks an operator that read gradients and no "
    "module's tensors, so that it came after that module. The part is the largest of all live bytes then."
)
_VALIDATED = "How near such predictions came to readings is in the project's report/prediction.md."
PREDICTED = f"Predicted, not measured: nothing of this was read on a GPU. {_VALIDATED}"


def sentences(plan: Plan, rows: Sequence[PlanRow]) -> Iterator[str]:
    """Yield what the plan says as a whole."""
    refused = sum(row.forecast is None for row in rows)
    if refused:
        yield f"{refused} of {_cells(len(rows))} cannot be predicted; the reasons are given below the table."
    if refused == len(rows):
        return
    if plan.ladder:
        nowhere = sum(row.forecast is not None and bool(row.verdicts) and not row.fitting for row in rows)
        if nowhere:
            largest, verb = _named(plan.cards[-1].title), "fits" if nowhere == 1 else "fit"
            yield f"{_cells(nowhere)} of {len(rows)} {verb} on no card tried, not even {largest}."
        return
    for count in card_counts(plan):
        answers = [
            _counted(count.fit, "fits", "fit"),
            _counted(count.not_fit, "does not fit", "do not fit"),
            _counted(count.close, "is too close to call", "are too close to call"),
        ]
        yield f"On {_named(count.card.title)}, {', '.join(filter(None, answers)) or 'no cell is judged'}."


def _counted(count: int, one: str, many: str) -> str | None:
    return None if count == 0 else f"{_cells(count)} {one if count == 1 else many}"


def _named(title: str) -> str:
    return title if title.startswith("a ") else f"one {title}"


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def notes_on(plan: Plan, rows: Sequence[PlanRow]) -> Iterator[str]:
    """Yield how each number came about and what was assumed."""
    forecasts = [row.forecast for row in rows if row.forecast]
    if not forecasts:
        return
    platforms = {platform for forecast in forecasts for platform in forecast.platforms}
    yield (
        "Nothing was run. The training window was traced on tensors without data, every sequence at its full "
        f"length, for {_targets(platforms)}. {_VALIDATED}"
    )
    if any(platform.device == "cpu" for platform in platforms):
        yield (
            "Live tensors: the peak of tensor bytes alive at once, as the ledger of a run on the CPU counts "
            "it; the process takes more. Name a card with --gpu or --memory to ask about one."
        )
    if not plan.cards:
        return
    settings = f"PYTORCH_CUDA_ALLOC_CONF={plan.allocator}" if plan.allocator else "its default settings"
    yield f"Peak set by: {WHAT_SET_IT}"
    yield (
        "Allocated: torch.cuda.max_memory_allocated. Reserved: max_memory_reserved, from a replay through a "
        f"model of torch's caching allocator with {settings}; the band is from replays that vary the order "
        "in which weights load (unless they are quantised on the way), the loader's first block and the "
        "addresses of segments, but not the length of sequences. A cell fits if the top of the band and the "
        "CUDA context together do (the total, or the figure beside a card), and does not fit if even what is "
        "allocated and the context do not; between the two is too close to call."
    )
    if any(forecast.paged_bytes for forecast in forecasts):
        yield "Paged: optimizer state in managed memory, which moves to host memory when the card is full."
    if plan.ladder:
        yield (
            "No card was named, so these were tried, all with the kernels of the compute capability above: "
            f"{', '.join(card.name for card in plan.cards)}. Name yours with --gpu or --memory."
        )
    yield from card_notes(plan)
    yield from dict.fromkeys(caveat.message for forecast in forecasts for caveat in forecast.caveats)


def card_notes(plan: Plan) -> Iterator[str]:
    """Yield what each card is taken to have, and what of it is assumed."""
    for card in plan.cards:
        usable, context = GIBIBYTES.show(card.usable_bytes), GIBIBYTES.show(card.context_bytes)
        assumed = f"; {', '.join(card.assumptions)}" if card.assumptions else ""
        yield f"{card.name}: {card.title}, {usable} usable, CUDA context {context}{assumed}."


def _targets(platforms: Collection[Platform]) -> str:
    """Say what was predicted for: devices and versions."""
    versions = {f"torch {one.torch}, bitsandbytes {one.bitsandbytes}" for one in platforms}
    cuda = sorted({one.capability for one in platforms if one.device == "cuda"})
    names = (
        [f"CUDA compute capability {' and '.join(f'{major}.{minor}' for major, minor in cuda)}"]
        if cuda
        else []
    )
    names += ["the CPU"] if any(one.device == "cpu" for one in platforms) else []
    return f"{' and '.join(names)} ({'; '.join(sorted(versions))})"


def why_untried(plan: Plan) -> str | None:
    """Say why no changes are shown, where none were tried."""
    if any(planned.changes is not None for planned in plan.cells):
        return None
    return (
        "What changes would free was not predicted, since the plan has many cells; choose some with --only, "
        "or ask with --advice, which tries changes on the cells that do not fit."
    )
