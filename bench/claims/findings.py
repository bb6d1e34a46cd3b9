"""What judging a claim gives: a verdict, its evidence, and the boundary where evidence is divided."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import eq, ge, le, ne
from typing import Final, Literal

from bench.claims.cases import Case, Figure, Instrument, Scalar

Verdict = Literal["holds", "holds conditionally", "contradicted", "untestable"]
Relation = Literal["at least", "at most", "is", "is not"]
Labelled = tuple[Mapping[str, Scalar], bool]
Conjunction = tuple["Condition", ...]

MOST_CONDITIONS: Final = 3
MOST_ALTERNATIVES: Final = 3
# A statement of several parts is as good as its worst part; what was not tested is worse than what holds.
_WORST_FIRST: tuple[Verdict, ...] = ("contradicted", "holds conditionally", "untestable", "holds")
_METHODS: Final = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA", "peft": "another method"}
_NAMES: Final = {
    "method.rank": "rank",
    "method.target_modules": "target modules",
    "method.adapter_dtype": "adapters' dtype",
    "method.double_quantisation": "double quantisation",
    "method.compute_dtype": "compute dtype",
    "training.sequence_length": "sequence length",
    "training.micro_batch": "micro-batch",
    "training.gradient_checkpointing": "gradient checkpointing",
    "training.gradient_accumulation": "gradient accumulation",
    "training.dtype": "dtype",
    "training.autocast": "autocast",
    "training.optimizer": "optimizer",
    "training.loss": "loss",
    "training.attention": "attention",
    "data.task": "task",
}
_RELATIONS = {"at least": ge, "at most": le, "is": eq, "is not": ne}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a comparison of accuracies showed, on questions about ``topic``.

    ``direction`` is where the whole interval lies, None where it holds zero. ``within`` is that it lies
    within ``margin`` of zero: not below by more where ``one_sided``, else on both sides.
    """

    topic: str
    direction: Literal["higher", "lower"] | None
    within: bool
    margin: float
    one_sided: bool


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One cell, or one pair of cells, and what it says of the claim; None where it is inconclusive.

    ``figure`` is what the claim is about, ``basis`` what it was computed from. ``settings`` is what a
    boundary can be drawn by.
    """

    cells: tuple[str, ...]
    instrument: Instrument
    source: str
    model: str
    parameters: int | None
    figure: Figure
    basis: tuple[Figure, ...]
    agrees: bool | None
    settings: Mapping[str, Scalar]
    note: str = ""
    outcome: Outcome | None = None


def evidence_of(  # noqa: PLR0913 - the parts of one row
    cells: Sequence[Case],
    figure: Figure,
    basis: Sequence[Figure] = (),
    *,
    agrees: bool | None,
    free: Collection[str] = (),
    note: str = "",
    more: Mapping[str, Scalar] | None = None,
    outcome: Outcome | None = None,
) -> Evidence:
    """Return what one cell says, or two together; ``more`` settings are looked at first for a boundary."""
    return Evidence(
        cells=tuple(case.cell.id for case in cells),
        instrument=cells[0].instrument,
        source=cells[0].source,
        model=cells[0].model,
        parameters=cells[0].parameters,
        figure=figure,
        basis=tuple(basis),
        agrees=agrees,
        settings={**(more or {}), **settings_of(*cells, free=free)},
        note=note,
        outcome=outcome,
    )


def settings_of(
    case: Case, reference: Case | None = None, *, free: Collection[str] = ()
) -> dict[str, Scalar]:
    """Return what a boundary may be drawn by, most telling first, and what was free in the reference."""
    method, training = case.cell.method, case.cell.training
    base = "int8" if case.fields.get("method.base") == "int8" else "none"
    found: dict[str, Scalar] = {
        "method": _METHODS[method.kind],
        "quantisation": method.quantisation if method.kind == "qlora" else base,
        **_named(case, _NAMES),
        "tokens in a micro-batch": training.micro_batch * training.sequence_length,
        "model": case.model,
    }
    if case.parameters is not None:
        found["billions of parameters"] = round(case.parameters / 1e9, 2)
    if reference is not None:
        kind = reference.cell.method.kind
        other = _METHODS[kind] if kind != method.kind else "the other"
        found |= {f"{other}'s {name}": value for name, value in _named(reference, free).items()}
    return found


def _named(case: Case, paths: Collection[str]) -> dict[str, Scalar]:
    values = {name: case.fields.get(path) for path, name in _NAMES.items() if path in paths}
    plain = {name: "+".join(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {name: value for name, value in plain.items() if value is not None}


@dataclass(frozen=True)
class Condition:
    """One setting and what it has to be."""

    setting: str
    relation: Relation
    value: Scalar

    def is_met(self, settings: Mapping[str, Scalar]) -> bool:
        """Tell whether settings meet it; those that lack this one do not."""
        value = settings.get(self.setting)
        return value is not None and bool(_RELATIONS[self.relation](value, self.value))


@dataclass(frozen=True)
class Boundary:
    """Alternatives, each of conditions that have to be met together; all rows that meet one agree.

    ``covered`` is how many of the ``agreeing`` rows meet one of them. Where that is all, the boundary is
    exact; else the others agree as well and few settings do not tell why.
    """

    alternatives: tuple[Conjunction, ...]
    covered: int
    agreeing: int

    @property
    def exact(self) -> bool:
        """Whether the alternatives are met by all agreeing rows, and by no other."""
        return self.covered == self.agreeing


@dataclass(frozen=True)
class Finding:
    """The verdict on one part of a claim. ``beside`` are models that the claim is not about.

    ``disturbed_runs`` counts the runs whose speed was left out.
    """

    part: str
    verdict: Verdict
    deciding: tuple[Evidence, ...]
    beside: tuple[Evidence, ...] = ()
    boundary: Boundary | None = None
    needs: str = ""
    disturbed_runs: int = 0


def conclude(
    part: str, deciding: Sequence[Evidence], beside: Sequence[Evidence], needs: str, disturbed_runs: int = 0
) -> Finding:
    """Return the verdict that rows of evidence come to, with the boundary where they are divided."""
    told = [(row.settings, row.agrees) for row in deciding if row.agrees is not None]
    yes, no = ({agrees for _, agrees in told} >= {wanted} for wanted in (True, False))
    undivided: Verdict = "holds" if yes else "contradicted" if no else "untestable"
    verdict: Verdict = "holds conditionally" if yes and no else undivided
    boundary = find_boundary(told) if yes and no else None
    return Finding(part, verdict, tuple(deciding), tuple(beside), boundary, needs, disturbed_runs)


def overall(findings: Sequence[Finding], combine: Literal["all", "any"] = "all") -> Verdict:
    """Return the verdict on a claim from those on its parts.

    Of parts that all have to hold the worst counts. Of readings of which any may be meant, those that could
    be tested count; where they differ, the claim holds only if the right one is meant.
    """
    verdicts = {finding.verdict for finding in findings}
    if combine == "any":
        told = verdicts - {"untestable"} or verdicts
        return told.pop() if len(told) == 1 else "holds conditionally"
    return min(verdicts, key=_WORST_FIRST.index)


def find_boundary(rows: Sequence[Labelled]) -> Boundary:
    """Return conditions under which all rows agree: at most three alternatives of at most three conditions.

    Each alternative is the one that covers most of the rows that are left; one more condition is taken only
    where it covers more. Of two that cover the same, the settings that stand first in the rows win.
    """
    yes, no = (
        sum(1 << index for index, (_, agrees) in enumerate(rows) if agrees is wanted)
        for wanted in (True, False)
    )
    masks = _candidates([settings for settings, _ in rows], yes)
    left, alternatives = yes, list[Conjunction]()
    while left and len(alternatives) < MOST_ALTERNATIVES and (found := _widest(masks, left, no)):
        alternatives.append(found[0])
        left &= ~found[1]
    agreeing = yes.bit_count()
    return Boundary(tuple(alternatives), covered=agreeing - left.bit_count(), agreeing=agreeing)


def _widest(masks: Mapping[int, Condition], wanted: int, no: int) -> tuple[Conjunction, int] | None:
    """Return the conjunction that most of the wanted rows meet and none of the others, and who meets it."""
    # Stable: among equals, as they stand in the rows.
    ordered = sorted(masks.items(), key=lambda one: -(one[0] & wanted).bit_count())
    best, best_count = None, 0
    tried: list[tuple[Conjunction, int, int]] = [((), wanted | no, 0)]
    for _ in range(MOST_CONDITIONS):
        grown = []
        for conditions, met, start in tried:
            for index, (mask, condition) in enumerate(ordered[start:], start + 1):
                if (mask & wanted).bit_count() <= best_count:
                    break  # more conditions are met by no more rows, and those after it by no more alone
                both = met & mask
                count = (both & wanted).bit_count()
                if count <= best_count or both == met:
                    continue
                grown.append(((*conditions, condition), both, index))
                if not both & no:
                    best, best_count = grown.pop()[:2], count
        tried = grown
    return best


def _candidates(rows: Sequence[Mapping[str, Scalar]], yes: int) -> dict[int, Condition]:
    """Return each condition on one setting that some agreeing rows meet and not all; a bit is a row."""
    found: dict[int, Condition] = {}
    for name in dict.fromkeys(name for settings in rows for name in settings):
        values = list(dict.fromkeys(settings[name] for settings in rows if name in settings))
        for relation, value in _relations(values):
            condition = Condition(name, relation, value)
            mask = sum(1 << index for index, settings in enumerate(rows) if condition.is_met(settings))
            if mask & yes and mask != (1 << len(rows)) - 1:
                found.setdefault(mask, condition)  # what says the same of all rows is asked once
    return found


def _relations(values: Sequence[Scalar]) -> Iterator[tuple[Relation, Scalar]]:
    numbers = sorted(one for one in values if isinstance(one, int | float) and not isinstance(one, bool))
    if numeric := len(numbers) == len(values):
        yield from (("at least", value) for value in numbers[1:])
        yield from (("at most", value) for value in numbers[:-1])
    yield from (("is", value) for value in (numbers if numeric else values))
    if len(values) > 2 and not numeric:  # noqa: PLR2004 - of two values, not one is the other
        yield from (("is not", value) for value in values)
