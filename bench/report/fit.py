"""What fits, for the terminal and as Markdown: the frontier as bars, and every bound with both its sides."""

import math
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from bench.compare.plans import (
    FitsOnCard,
    Fitting,
    Ladder,
    ModelFits,
    Need,
    PlanRow,
    card_counts,
    card_fits,
    ladders,
)
from bench.records.predictions import Bound, Change, Fit, Plan, Tried
from bench.report.text import (
    GIBIBYTES,
    NOT_APPLICABLE,
    Pieces,
    RowLink,
    Sentence,
    Table,
    bullets,
    listed,
    markdown,
    markdown_table,
    plain,
    terminal_table,
)
from bench.scenario.catalogue import Card
from bench.scenario.types import Platform

if TYPE_CHECKING:
    from rich.console import Group

AXES = {"micro_batch": "micro-batch", "sequence_length": "sequence length", "rank": "rank"}
WIDTH_OF_DOUBLING = 4


def render_markdown(fit: Fit) -> str:
    """Return the whole as a page."""
    parts = [
        f"# {markdown(_title(fit))}",
        f"Largest micro-batch at each sequence length:\n\n```\n{frontier(fit)}\n```",
        markdown_table(_bound_table(fit)),
        "How to read it:\n\n" + bullets(markdown(note) for note in _notes(fit)),
    ]
    return "\n\n".join(parts) + "\n"


def render_terminal(fit: Fit) -> "Group":
    """Return the whole for a rich console."""
    from rich.console import Group
    from rich.text import Text

    chart = Text(f"{_title(fit)}\n\nlargest micro-batch at each sequence length:\n\n{frontier(fit)}\n")
    return Group(
        chart,
        terminal_table(_bound_table(fit), "Every bound, predicted on both sides"),
        *(Text(plain(f"- {note}")) for note in _notes(fit)),
    )


def frontier(fit: Fit) -> str:
    """Return the largest batch at each length as bars, one line a method; a doubling is one step longer."""
    bounds = [bound for bound in fit.bounds if bound.axis == "micro_batch"]
    width = max((len(plain(bound.method)) for bound in bounds), default=0)
    groups = [
        "\n".join(
            f"{length:>7,}  {plain(bound.method):<{width}}  {_bar(bound)}"
            for bound in bounds
            if bound.sequence_length == length
        )
        for length in dict.fromkeys(bound.sequence_length for bound in bounds)
    ]
    return "\n\n".join(groups)


def _bar(bound: Bound) -> str:
    if bound.refusal is not None:
        return "cannot be predicted"
    if bound.fits is None:
        borderline = bound.next is not None and bound.next.verdict.answer == "too close to call"
        return "1 is borderline" if borderline else "not even 1"
    size = bound.fits.value
    beyond = " or more" if bound.next is None else ""
    return f"{'█' * (1 + round(math.log2(size) * WIDTH_OF_DOUBLING))} {size:,}{beyond}"


def _bound_table(fit: Fit) -> Table:
    return Table(
        header=("Method", "Largest", "With", "Fits", "Needs", "Next", "Needs", "Verdict"),
        left=3,
        rows=tuple(
            (
                bound.method,
                AXES[bound.axis],
                _held(bound),
                *_side(bound.fits),
                *_side(bound.next),
                _verdict(bound),
            )
            for bound in fit.bounds
        ),
    )


def _held(bound: Bound) -> str:
    values = {
        "micro_batch": f"batch {bound.micro_batch}",
        "sequence_length": f"length {bound.sequence_length:,}",
        "rank": None if bound.rank is None else f"rank {bound.rank}",
    }
    return ", ".join(text for axis, text in values.items() if axis != bound.axis and text)


def _side(tried: Tried | None) -> tuple[str, str]:
    if tried is None:
        return NOT_APPLICABLE, NOT_APPLICABLE
    return f"{tried.value:,}", GIBIBYTES.show(tried.verdict.needed_bytes)


def _verdict(bound: Bound) -> str:
    if bound.refusal is not None:
        return "cannot be predicted"
    if bound.next is None:
        return f"{bound.limit:,} is the limit"
    answer = bound.next.verdict.answer
    return f"borderline ({answer})" if answer == "too close to call" else answer


def _title(fit: Fit) -> str:
    return f"{fit.model} on {fit.card.title}: what fits"


def _notes(fit: Fit) -> Iterator[str]:
    usable, context = GIBIBYTES.show(fit.card.usable_bytes), GIBIBYTES.show(fit.card.context_bytes)
    assumed = f"; {', '.join(fit.card.assumptions)}" if fit.card.assumptions else ""
    yield f"{fit.card.title}: {usable} usable, CUDA context {context}{assumed}."
    settings = fit.allocator or "torch's default"
    yield from fit.assumptions
    yield f"All methods: {fit.window}. torch {fit.torch}, allocator settings: {settings}."
    yield (
        "Needs: the top of the predicted reserved band and the context. Nothing was run; both sides of each "
        "bound were predicted by tracing the training step on tensors without data."
    )
    steps = {AXES[bound.axis]: bound.step for bound in fit.bounds if bound.step > 1}
    if steps:
        listed = " and ".join(f"a {what} in steps of {step}" for what, step in steps.items())
        yield f"Searched: {listed}."
    yield from dict.fromkeys(
        f"{bound.method} cannot be predicted: {bound.refusal}" for bound in fit.bounds if bound.refusal
    )
    for bound in fit.bounds:
        if bound.changes is not None:
            held = f"{bound.method} at batch 1, length {bound.sequence_length:,}"
            yield f"{held} fits with {_listed(bound.changes) or 'none of the changes tried'}."
    yield from dict.fromkeys(caveat.message for bound in fit.bounds for caveat in bound.caveats)


def _listed(changes: Sequence[Change]) -> str:
    return "; or ".join(f"{one.what} ({GIBIBYTES.show(one.verdicts[0].needed_bytes)})" for one in changes)


MOST_SENTENCES = 8
_MOST_METHODS = 12
_SETTINGS = {"ckpt": "gradient checkpointing", "pack": "packed sequences", "b1": "a batch of one sequence"}


def fit_sentences(plan: Plan) -> tuple[Sentence, ...]:
    """Return what fits which card, the largest length first; on a ladder of cards the smallest that fits.

    Nothing is returned where no card was asked about.
    """
    models = card_fits(plan)
    if plan.ladder:
        return tuple(_on_ladder(one) for one in ladders(models))
    lengths = sorted({length for model in models for length in model.sequence_lengths}, reverse=True)
    return tuple(
        sentence
        for length in lengths
        for model in models
        if length in model.sequence_lengths
        for card in model.cards
        for sentence in _of_card(model, model.at[card.name, length])
    )


def _of_card(model: ModelFits, fit: FitsOnCard) -> Iterator[Sentence]:
    parts = [_fits(one) for one in fit.fitting]
    parts += [_fails(needs, told) for needs, told in _failing(fit) if needs]
    if parts:
        about = f"{model.model} at {fit.sequence_length:,} tokens, {fit.card.name}"
        yield Sentence(about, _joined(parts))


def _failing(fit: FitsOnCard) -> Iterator[tuple[Sequence[Need], tuple[str, str]]]:
    yield fit.close, ("is too close to call", "are too close to call")
    yield fit.not_fitting, ("does not fit", "do not fit")


def _joined(parts: Sequence[Pieces]) -> Pieces:
    ends = ["; "] * (len(parts) - 1) + ["."]
    return tuple(piece for part, end in zip(parts, ends, strict=True) for piece in (*part, end))


def _fits(one: Fitting) -> Pieces:
    """Say which methods fit, with which settings only, and what they need."""
    told = " fits" if len(one.needs) == 1 else " fit"
    if one.always:
        told += f" only with {' and '.join(_SETTINGS.get(name, name) for name in one.always)}"
    elif len(one.windows) < one.tried:
        told += f" with {' or '.join(one.windows)}, not with all {one.tried} settings tried"
    return (*_methods(one.needs), f"{told} ({GIBIBYTES.span(one.low_bytes, one.high_bytes)} needed)")


def _fails(needs: Sequence[Need], told: tuple[str, str]) -> Pieces:
    least = min(needs, key=lambda need: need.needed_bytes)
    said = told[0] if len(needs) == 1 else told[1]
    return (*_methods(needs), f" {said} (at least {GIBIBYTES.show(least.needed_bytes)} needed)")


def _methods(needs: Sequence[Need]) -> Iterator[str | RowLink]:
    yield from listed([RowLink(need.method, need.cell) for need in needs], _MOST_METHODS)


def _on_ladder(one: Ladder) -> Sentence:
    parts: list[Pieces] = [_step(card, needs) for card, needs in one.steps]
    if one.nowhere:
        parts.append(_fails(one.nowhere, ("fits for certain on none", "fit for certain on none")))
    about = f"{one.model} at {one.sequence_length:,} tokens, smallest card that fits"
    return Sentence(about, _joined(parts) if parts else ("no cell could be judged.",))


def _step(card: Card, needs: Sequence[Need]) -> Pieces:
    size = f"{GIBIBYTES.scaled(card.memory_bytes):.0f} GiB"
    return (f"{card.name} ({size}) for ", *_methods(needs))


WHAT_SET_IT = (
    "the operator that ran as most bytes were alive, and the nearest module that was known "
    "to be running or to own what it read; (gradients only) marks an operator that read gradients and no "
    "module's tensors, so that it came after that module. The part is the largest of all live bytes then."
)
_VALIDATED = "How near such predictions came to readings is in the project's report/prediction.md."
PREDICTED = f"Predicted, not measured: nothing of this was read on a GPU. {_VALIDATED}"


def plan_sentences(plan: Plan, rows: Sequence[PlanRow]) -> Iterator[str]:
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
    for card, counts in card_counts(plan):
        answers = [
            _counted(counts["fits"], "fits", "fit"),
            _counted(counts["does not fit"], "does not fit", "do not fit"),
            _counted(counts["too close to call"], "is too close to call", "are too close to call"),
        ]
        yield f"On {_named(card.title)}, {', '.join(filter(None, answers)) or 'no cell is judged'}."


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
